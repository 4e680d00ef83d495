// SPDX-License-Identifier: Apache-2.0
// cadre train: the main job.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "comm/base/console.hpp"
#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"
#include "launch/banner.hpp"
#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "launch/leftovers.hpp"
#include "launch/run_start.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/observe/process.hpp"
#include "runtime/parallel/devices.hpp"
#include "runtime/train/host_memory.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/recovery.hpp"
#include "runtime/train/resume.hpp"
#include "runtime/train/run_folder.hpp"
#include "runtime/train/schedule_choice.hpp"
#include "runtime/train/trainer.hpp"

namespace cadre {
namespace {

struct TrainArguments {
  std::string run_file;
  std::vector<std::string> overrides;
  int64_t ranks = 0;
  std::string replay;
  std::string metrics;
  bool print_config = false;
  bool print_out = false;
};

// What each rank was foreseen to take, and what its process then took beyond where it started.
class MemoryReport {
 public:
  // Collective over `world`. Prints the plan of rank 0; throws when a host has not that much.
  MemoryReport(const Communicator& world, const RunConfig& config, int ranks_of_process)
      : ranks_of_process_(static_cast<size_t>(ranks_of_process)), resident_at_start_(resident_bytes()) {
    const Topology topology = discover_topology(world);
    const MemoryPlan plan = largest_plan(config, topology, world.rank(), ranks_of_process);
    planned_ = plan.total_bytes();
    std::string limit;
    if (config.compute.device == "cpu") {
      limit = check_host_memory(world, topology, planned_ + unshared_bytes() / ranks_of_process_);
    } else {
      check_device_memory(topology, take_device_seats(world), world.rank(), planned_);
    }
    if (world.rank() != 0) return;
    if (!limit.empty()) limit = config.log.wide ? "  limit: " + limit + "\n" : "; limit: " + limit;
    say(config.log.wide ? fmt::format("memory of a rank, planned:\n{}{}", plan.table(), limit)
                        : fmt::format("memory of a rank, planned: {}{}\n", plan.line(), limit));
  }

  // Collective over `world`.
  void print(const Communicator& world) const {
    const size_t taken = (peak_resident_bytes() - resident_at_start_) / ranks_of_process_;
    const std::array<double, 2> mine = {static_cast<double>(planned_) / kMiB, static_cast<double>(taken) / kMiB};
    const auto most = wait(world.all_reduce(mine, ReduceOp::max));
    if (world.rank() == 0) {
      say(fmt::format("memory of a rank, at most: planned {:.1f} MiB, measured {:.1f} MiB\n", most[0], most[1]));
    }
  }

 private:
  // Of the configurations that [from_step.N] makes.
  static MemoryPlan largest_plan(const RunConfig& config, const Topology& topology, int rank, int ranks_of_process) {
    MemoryPlan largest;
    for (const int64_t step : first_steps(config)) {
      MemoryPlan plan = plan_memory(config_at(config, step), topology, rank, ranks_of_process);
      if (largest.lines.empty() || plan.total_bytes() > largest.total_bytes()) largest = std::move(plan);
    }
    largest.lines.push_back({"data", held_bytes(config.data)});
    return largest;
  }

  size_t ranks_of_process_;
  size_t resident_at_start_;
  size_t planned_ = 0;
};

// The run is over and its work is done, whatever becomes of its report.
void show_report_if_possible(const std::string& run_dir) {
  try {
    show_report(run_dir);
  } catch (const std::exception& error) {
    say(fmt::format("note: no report: {}\n", error.what()));
  }
}

// Collective over `world`.
void clean_host(const Communicator& world) {
  if (world.transport().name() != "mpi") return;
  hold_segments();
  if (world.transport().host_leader() != world.rank()) return;
  const std::vector<std::string> removed = remove_stale_segments();
  if (!removed.empty()) {
    say(fmt::format("note: removed {} segments of shared memory that a killed job left in /dev/shm\n", removed.size()));
  }
}

// The checkpoint that a run finds, and when it was made.
struct Found {
  std::filesystem::path path;
  std::filesystem::file_time_type made;
  bool operator==(const Found&) const = default;
};

std::optional<Found> find_latest(const RunConfig& config) {
  const auto latest = latest_checkpoint(std::filesystem::path(config.out) / "checkpoints");
  if (!latest) return std::nullopt;
  std::error_code gone;
  return Found{latest->path, std::filesystem::last_write_time(latest->path / "cadre.json", gone)};
}

void print_data(const Dataset& data) {
  for (size_t i = 0; i < data.summaries.size(); ++i) {
    const int64_t held_out = data.validation_summary ? 0 : data.validation[i].tokens.num_tokens();
    say(fmt::format("data {}; {} to train on, {} held out\n", describe(data.summaries[i]),
                    data.train[i].tokens.num_tokens(), held_out));
  }
  if (data.validation_summary) say(fmt::format("validation data {}\n", describe(*data.validation_summary)));
}

// What rank 0 prints of a trainer before it runs.
void tell_trainer(const Trainer& trainer) {
  print_data(trainer.dataset());
  say(fmt::format("exchange {}\n", trainer.exchange_reason()));
  for (const std::string& note : {trainer.schedule_note(), trainer.progress_note(), trainer.rebalance_note()}) {
    if (!note.empty()) say(fmt::format("note: {}\n", note));
  }
}

// The steps that are left, from the last checkpoint on: a trainer for each configuration that they have.
void train_all_steps(Communicator world, const RunConfig& config, const MemoryReport& memory, Recovery* recovery,
                     PartnerCopies* copies, const std::optional<StepForecast>& forecast) {
  const bool changes = !config.changes.empty();
  int64_t next_step = changes ? likely_next_step(world, config) : 1;
  bool is_first = true;
  for (;;) {
    Trainer trainer(changes ? world.duplicate(world.name()) : std::move(world), config, copies, {}, next_step);
    next_step = trainer.steps_done() + 1;
    if (!trainer.is_of_next_step()) continue;  // the newest checkpoint was left out
    if (forecast) trainer.expect(*forecast);
    const bool speaks = trainer.worker().world().rank() == 0;
    if (is_first && recovery != nullptr) {
      const double seconds = recovery->stands();
      if (speaks && recovery->num_lost() > 0) say(fmt::format("recovered in {:.2f} s\n", seconds));
    }
    if (is_first && speaks) tell_trainer(trainer);
    is_first = false;
    const RunEnd end = trainer.run();
    next_step = trainer.steps_done() + 1;
    if (trainer.has_traces() && speaks) show_report_if_possible(config.out);
    if (end == RunEnd::other_config) continue;
    return memory.print(trainer.worker().world());
  }
}

// On the ranks of `world`, from the last checkpoint to the end. `run` names the job.
void train_on(Communicator world, const RunConfig& asked, int ranks_of_process, const std::string& run,
              Recovery* recovery = nullptr, PartnerCopies* copies = nullptr) {
  const bool fresh = recovery == nullptr || recovery->num_lost() == 0;
  const FolderClaim claim(world, asked, run);
  if (claim.is_finished()) return;
  std::string note;
  const RunConfig measured = with_products(world, asked, note);
  if (fresh) {
    print_banner(world, measured);
    clean_host(world);
    if (world.rank() == 0 && !note.empty()) say(note);
  } else if (world.rank() == 0) {
    say(fmt::format("RECOVERY {}; {} ranks continue\n", recovery->story(), world.size()));
  }
  std::string choice;
  std::optional<StepForecast> forecast;
  const RunConfig config = with_schedule(world, measured, choice, forecast);
  if (world.rank() == 0 && !choice.empty()) say(choice + "\n");
  const MemoryReport memory(world, config, ranks_of_process);
  train_all_steps(std::move(world), config, memory, recovery, copies, forecast);
}

void train_with_survivors(const RunConfig& config, const Job& job) {
  const std::optional<Found> at_start = find_latest(config);
  std::optional<PartnerCopies> copies;
  if (config.checkpoint.partner_copies > 0) copies.emplace();
  std::string run;
  run_on_survivors(job.mpi(), job.context(), [&](Communicator world, Recovery& recovery) {
    PartnerCopies* const kept = copies ? &*copies : nullptr;
    if (run.empty()) run = name_run(world);
    if (recovery.num_lost() == 0) return train_on(std::move(world), config, 1, run, &recovery, kept);
    const RunConfig fewer = config_of_survivors(config, world.size(), find_latest(config) != at_start);
    train_on(std::move(world), fewer, 1, run, &recovery, kept);
  });
}

void run_train(const TrainArguments& options, const Job& job) {
  std::vector<std::string> overrides = options.overrides;
  if (!options.metrics.empty()) overrides.push_back("log.metrics=" + options.metrics);
  if (!options.replay.empty()) overrides.push_back("train.replay=" + options.replay);
  RunConfig config = config_of_run(options.run_file, overrides);
  if (options.print_out) {
    if (job.rank() != 0) return;
    fmt::print("{}\n", config.out);
    return require_stdout();
  }
  const int num_ranks = job.num_ranks(options.ranks);
  const std::string shortened = shorten_warmup(config);
  check(config, num_ranks);
  CADRE_CHECK(config.compute.weights == "fp32",
              fmt::format("compute.weights = {}, allowed: fp32", config.compute.weights),
              "what trains is kept in fp32; generate, score and eval take other formats");
  check_stage_shapes(config);
  if (options.print_config) {
    if (job.rank() != 0) return;
    fmt::print("{}", to_toml(config));
    return require_stdout();
  }
  if (options.ranks > 0) {
    CADRE_CHECK(config.recover == "none", "recover = survivors, allowed: none with --ranks",
                "threads of a process die together: start processes with mpirun");
  }
  check_paths(config);
  if (!shortened.empty() && job.rank() == 0) say(fmt::format("note: {}\n", shortened));
  check_recovery(config, num_ranks, job.context());
  config = with_end_of_text(std::move(config));
  check_out_folder(config);
  if (job.rank() == 0) say(notes_on_start(config));
  job.context().set_deadline(config.exchange.deadline_s);
  if (config.recover == "survivors" && job.size() > 1) return train_with_survivors(config, job);
  job.on_ranks(options.ranks, [&](Communicator world) {
    const int ranks_of_process = job.size() == 1 ? world.size() : 1;
    const std::string run = name_run(world);
    train_on(std::move(world), config, ranks_of_process, run);
  });
}

}  // namespace

Command train_command() {
  const auto options = std::make_shared<TrainArguments>();
  return {.name = "train",
          .summary = "trains the model of a run file; continues from the newest checkpoint of the run",
          .arguments = {{"RUN.toml", &options->run_file, any(), "run file; examples are in launch/configs"}},
          .overrides = &options->overrides,
          .options = {ranks_option(options->ranks),
                      {"metrics", &options->metrics, any(), "csv: also write metrics.csv; same as log.metrics=csv"},
                      {"replay", &options->replay, any(),
                       "folder of recorded routing, which tokens follow; same as train.replay"},
                      {"print-config", &options->print_config, any(), "print the resolved configuration and exit"},
                      {"print-out", &options->print_out, any(), "print the folder of the run and exit, for scripts"}},
          .more_help = [] { return "Keys of the run file, also as key=value:\n" + run_config_help(); },
          .run = [options](const Job& job) { run_train(*options, job); },
          .output_is_result = false};
}

}  // namespace cadre
