// SPDX-License-Identifier: Apache-2.0
// cadre plan step: what a step of a job of any size will take, predicted from a measured machine. cadre plan cluster: measures
// that machine.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "launch/command.hpp"
#include "launch/plan/planned_job.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/plan/predict_step.hpp"
#include "runtime/plan/step_timeline.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/verify.hpp"
#include "runtime/train/probe.hpp"
#include "runtime/train/resume.hpp"
#include "runtime/train/schedule_choice.hpp"

namespace cadre {
namespace {

struct PlanStepArguments : TimedJob {
  std::string svg;
};

double share(double part, double whole) { return whole > 0.0 ? 100.0 * part / whole : 0.0; }

void print_step(const StepShape& shape, const StepPrediction& step, int64_t hosts) {
  fmt::print("{} ranks on {} hosts, grid {}, schedule {}, exchange {}\n", shape.grid.num_ranks(), hosts,
             shape.grid.describe(), shape.program.name, shape.strategy);
  if (!shape.program.note.empty()) fmt::print("note: {}\n", shape.program.note);
  const auto line = [](const char* what, double seconds, const std::string& more = "") {
    fmt::print("  {:<22} {:>12.2f} ms{}\n", what, seconds * 1e3, more);
  };
  line("step", step.step_s, fmt::format("  {:.0f} tokens/s, MFU {:.2f} %", step.tokens_per_s, 100.0 * step.mfu));
  line("compute", step.compute_s, fmt::format("  {:.1f} %", share(step.compute_s, step.step_s)));
  line("exposed communication", step.exposed_s,
       fmt::format("  {:.1f} %, {:.2f} ms of it for busier ranks", share(step.exposed_s, step.step_s),
                   step.skew_s * 1e3));
  line("hidden communication", step.hidden_s,
       fmt::format("  {:.1f} % of it", share(step.hidden_s, step.communication_s)));
  line("dispatch and combine", step.exchange_s,
       fmt::format("  {:.1f} % hidden", share(step.exchange_hidden_s, step.exchange_s)));
  line("idle in the pipeline", step.idle_s,
       fmt::format("  of the schedule {:.2f}, by formula {:.2f}", step.schedule_bubble_s * 1e3,
                   step.formula_bubble_s * 1e3));
  line("passes", step.passes_s,
       fmt::format("  serial {:.2f}, {:.2f} times as fast", step.serial_passes_s * 1e3,
                   step.passes_s > 0.0 ? step.serial_passes_s / step.passes_s : 1.0));
}

nlohmann::json to_json(const StepShape& shape, const StepPrediction& step, int64_t hosts) {
  nlohmann::json json = {{"plan", "step"},
                         {"ranks", shape.grid.num_ranks()},
                         {"hosts", hosts},
                         {"pipeline", shape.grid.pipeline},
                         {"data", shape.grid.data},
                         {"expert", shape.grid.expert},
                         {"schedule", shape.program.name},
                         {"exchange", shape.strategy},
                         {"step_ms", step.step_s * 1e3},
                         {"compute_ms", step.compute_s * 1e3},
                         {"exposed_ms", step.exposed_s * 1e3},
                         {"idle_ms", step.idle_s * 1e3},
                         {"schedule_bubble_ms", step.schedule_bubble_s * 1e3},
                         {"formula_bubble_ms", step.formula_bubble_s * 1e3},
                         {"communication_ms", step.communication_s * 1e3},
                         {"hidden_ms", step.hidden_s * 1e3},
                         {"exchange_ms", step.exchange_s * 1e3},
                         {"exchange_hidden_ms", step.exchange_hidden_s * 1e3},
                         {"skew_ms", step.skew_s * 1e3},
                         {"passes_ms", step.passes_s * 1e3},
                         {"serial_passes_ms", step.serial_passes_s * 1e3},
                         {"tokens_per_s", step.tokens_per_s},
                         {"mfu", step.mfu},
                         {"rows", nlohmann::json::array()}};
  for (const RankPrediction& row : step.rows) {
    json["rows"].push_back(
        {{"compute_ms", row.compute_s * 1e3}, {"exposed_ms", row.exposed_s * 1e3}, {"idle_ms", row.idle_s * 1e3}});
  }
  return json;
}

void run_plan_step(const PlanStepArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  const Machine machine = machine_of(options);
  RunConfig config = load_run_config(options.run_file, options.overrides);
  check(config, static_cast<int>(options.ranks));
  const Topology topology = topology_of(options);
  const Grid grid = Grid::make(topology.num_ranks(), static_cast<int>(config.parallel.pipeline),
                               static_cast<int>(config.parallel.expert));
  const LoadSkew skew = skew_of_loads(options.loads, config, grid.expert, topology.num_ranks() / topology.num_hosts());
  if (config.parallel.schedule == "auto") {
    const ScheduleChoice choice = choose_schedule(config, topology, machine, skew);
    fmt::print("{}\n", choice.reason);
    config.parallel.schedule = choice.schedule;
    config.parallel.overlap = choice.overlap;
  }
  const StepShape shape = shape_step(config, topology, machine, skew);
  verify(shape.program);
  const StepPrediction step = predict_step(shape, machine.peak_gflops(), config.parallel.overlap);
  print_step(shape, step, options.hosts);
  if (!options.json.empty()) write_text_file(options.json, to_json(shape, step, options.hosts).dump() + "\n");
  if (options.svg.empty()) return;
  const std::string title = fmt::format("{} on {} ranks ({}): {:.4g} ms", shape.program.name, options.ranks,
                                        shape.grid.describe(), step.step_s * 1e3);
  write_text_file(options.svg, timeline_svg(step_timeline(shape, config.parallel.overlap), title));
}

struct PlanClusterArguments {
  std::string run_file;
  std::vector<std::string> overrides;
  int64_t ranks = 0;
  std::string out;
};

void run_plan_cluster(const PlanClusterArguments& options, const Job& job) {
  CADRE_CHECK(!options.out.empty(), "--out is missing", "the file to write, such as cluster.toml");
  const RunConfig config = load_run_config(options.run_file, options.overrides);
  check(config, job.num_ranks(options.ranks));
  job.on_ranks(options.ranks, [&](const Communicator& world) {
    std::string note;
    const Machine machine = measure_machine(world, with_products(world, config, note), {4, 2, 1});
    if (world.rank() != 0) return;
    const std::string text = to_toml(machine);
    write_text_file(options.out, text);
    say(note + text);
  });
}

}  // namespace

Command plan_step_command() {
  const auto options = std::make_shared<PlanStepArguments>();
  Command command =
      timed_job_command("step", "predicts the time of a step on any number of ranks of a measured machine", *options,
                        {{"svg", &options->svg, any(), "also draw the step of each row of the pipeline to this file"}});
  command.run = [options](const Job& job) { run_plan_step(*options, job); };
  return command;
}

Command plan_cluster_command() {
  const auto options = std::make_shared<PlanClusterArguments>();
  return {.name = "cluster",
          .summary = "measures rates of work and costs of links on the ranks it is started on, for plan step",
          .arguments = {{"RUN.toml", &options->run_file, any(), "run file whose model and batch are measured"}},
          .overrides = &options->overrides,
          .options = {ranks_option(options->ranks), {"out", &options->out, any(), "file to write"}},
          .run = [options](const Job& job) { run_plan_cluster(*options, job); }};
}

}  // namespace cadre
