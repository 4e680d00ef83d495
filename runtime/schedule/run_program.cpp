// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/run_program.hpp"

#include <algorithm>

#include "comm/base/check.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre {
namespace {

Program program_named(const std::string& schedule, const RunConfig& config) {
  Program program = make_program(schedule, static_cast<int>(config.parallel.pipeline),
                                 static_cast<int>(config.train.micro_batches), static_cast<int>(config.parallel.ramp));
  program.num_postponed = static_cast<int>(config.parallel.postponed);
  program.sums_each_pass = config.parallel.shard_optimizer && config.parallel.shard_gradients;
  // Sums of each pass start in the order of the passes on all ranks.
  program.ends_by_layer = !program.sums_each_pass && std::ranges::none_of(program.ops, [](const OpList& ops) {
    return std::ranges::find(ops, OpKind::backward_weight, &Op::kind) != ops.end();
  });
  return program;
}

}  // namespace

std::vector<std::string> possible_schedules(const RunConfig& config) {
  std::vector<std::string> names;
  for (const std::string& name : schedule_names()) {
    const bool for_one = name == "1f1b" || name == "pair";
    if (config.parallel.pipeline == 1 && !for_one) continue;
    if (config.parallel.shard_gradients && name == "dualpipe") continue;
    const Program program = program_named(name, config);
    if (program.note.empty() && program.num_stages <= config.model.num_hidden_layers) names.push_back(name);
  }
  return names;
}

Program program_of(const RunConfig& config) {
  std::string schedule = config.parallel.schedule;
  if (schedule == "auto") {
    const std::vector<std::string> names = possible_schedules(config);
    schedule = names.empty() ? "1f1b" : names.back();
  }
  Program program = program_named(schedule, config);
  CADRE_CHECK(program.num_stages <= config.model.num_hidden_layers,
              fmt::format("parallel.pipeline = {} with {} makes {} stages, allowed: at most the {} layers of the model",
                          config.parallel.pipeline, program.name, program.num_stages, config.model.num_hidden_layers),
              "a smaller pipeline, or a schedule with one stage a rank, such as zb1p");
  return program;
}

}  // namespace cadre
