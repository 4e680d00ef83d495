// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/make_program.hpp"

#include <algorithm>
#include <array>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "comm/base/fields.hpp"
#include "runtime/schedule/generators.hpp"

namespace cadre {
namespace {

struct Schedule {
  std::string name;
  std::string summary;
  Program (*generate)(int num_ranks, int num_micro_batches);  // nullptr: pair
  // What it asks of the counts and they do not give; empty when it can run.
  std::string (*lacks)(int num_ranks, int num_micro_batches);
  // Idle time of each rank, R ranks.
  std::string formula;
  double (*bubble)(const Cost& cost, double ranks);
};

std::string nothing(int /*num_ranks*/, int /*num_micro_batches*/) { return ""; }

std::string too_few(int num_ranks, int num_micro_batches) {
  return num_micro_batches >= 2 * num_ranks ? "" : fmt::format("at least {} micro-batches (2 a rank)", 2 * num_ranks);
}

std::string dualpipe_lacks(int num_ranks, int num_micro_batches) {
  if (num_ranks % 2 != 0) return "an even number of ranks";
  if (num_micro_batches % 2 != 0) return "an even number of micro-batches";
  return too_few(num_ranks, num_micro_batches);
}

std::string pair_lacks(int num_ranks, int /*num_micro_batches*/) {
  return num_ranks == 1 ? "" : "a pipeline of 1 rank";
}

const std::array<Schedule, 5>& schedules() {
  static const std::array<Schedule, 5> table = {{
      {"1f1b", "one forward, one backward in turn", one_f_one_b, nothing, "(R-1)(F+B)",
       [](const Cost& c, double ranks) { return (ranks - 1) * (c.forward + c.backward); }},
      {"zb1p", "1F1B with weight gradients put off to fill the bubble", zb1p, nothing, "(R-1)(F+B-2W)",
       [](const Cost& c, double ranks) { return (ranks - 1) * (c.forward + c.backward - 2 * c.backward_weight); }},
      {"dualpipe", "from both ends at once, forward overlapped with backward; 2 of R stages a rank", dualpipe,
       dualpipe_lacks, "(R/2-1)(F&B+B-3W)",
       [](const Cost& c, double ranks) {
         return (ranks / 2 - 1) * (c.overlapped + c.backward - 3 * c.backward_weight);
       }},
      {"dualpipev", "DualPipe on a V of 2R stages, all from rank 0", dualpipev, too_few, "(R-1)(F&B+B-3W)",
       [](const Cost& c, double ranks) { return (ranks - 1) * (c.overlapped + c.backward - 3 * c.backward_weight); }},
      {"pair", "one rank: each forward overlapped with a backward, for expert parallelism alone", nullptr, pair_lacks,
       "0", [](const Cost& /*cost*/, double /*ranks*/) { return 0.0; }},
  }};
  return table;
}

const Schedule& schedule_named(const std::string& name) {
  const auto found = std::ranges::find(schedules(), name, &Schedule::name);
  CADRE_CHECK(found != schedules().end(), fmt::format("unknown schedule {}", name),
              nearest_name_hint(name, schedule_names()));
  return *found;
}

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

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const Schedule& schedule : schedules()) names.push_back(schedule.name);
  return names;
}

std::string schedule_summaries() {
  std::string text;
  for (const Schedule& schedule : schedules()) {
    text += help_entry(schedule.name, fmt::format("{}; bubble {}", schedule.summary, schedule.formula), 13);
  }
  return text;
}

Program make_program(const std::string& name, int num_ranks, int num_micro_batches, int ramp) {
  const auto generate = [&](const Schedule& schedule) {
    return add_messages(schedule.generate == nullptr ? pair(num_micro_batches, ramp)
                                                     : schedule.generate(num_ranks, num_micro_batches));
  };
  CADRE_CHECK(num_ranks >= 1 && num_micro_batches >= 1,
              fmt::format("{} ranks and {} micro-batches", num_ranks, num_micro_batches), "both must be at least 1");
  const Schedule& asked = schedule_named(name);
  const std::string lacks = asked.lacks(num_ranks, num_micro_batches);
  if (lacks.empty()) return generate(asked);
  // Without a pipeline there is still the overlap; without overlap the least idle time for the same memory.
  const Schedule& otherwise = schedule_named(num_ranks == 1 ? "pair" : "zb1p");
  Program program = generate(otherwise);
  program.note = fmt::format("{} needs {}, there are {} ranks and {} micro-batches: {} instead", name, lacks, num_ranks,
                             num_micro_batches, program.name);
  return program;
}

double formula_bubble(const Program& program, const Cost& cost) {
  return std::max(0.0, schedule_named(program.name).bubble(cost, program.num_ranks));
}

std::string formula_text(const Program& program) { return schedule_named(program.name).formula; }

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
