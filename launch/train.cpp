// SPDX-License-Identifier: Apache-2.0
// cadre train: the main job.
#include <fmt/format.h>

#include <memory>
#include <vector>

#include "comm/group/topology.hpp"
#include "comm/transport/wait.hpp"
#include "launch/banner.hpp"
#include "launch/command.hpp"
#include "launch/leftovers.hpp"
#include "launch/report.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/observe/process_memory.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/signals.hpp"
#include "runtime/train/trainer.hpp"

namespace cadre {
namespace {

struct Options {
  std::string run_file;
  std::vector<std::string> overrides;
  int64_t ranks = 0;
  std::string metrics;
  bool print_config = false;
};

constexpr double kMiB = 1024.0 * 1024.0;

// What each rank was foreseen to take, and what its process then took beyond where it started.
class MemoryReport {
 public:
  // Collective over `world`. Prints the plan of rank 0; throws when a host has not that much.
  MemoryReport(const Communicator& world, const RunConfig& config, int ranks_of_process)
      : ranks_of_process_(static_cast<size_t>(ranks_of_process)), resident_at_start_(resident_bytes()) {
    const Topology topology = discover_topology(world);
    const MemoryPlan plan = plan_memory(config, topology, world.rank());
    planned_ = plan.total_bytes();
    check_memory(plan, topology.ranks_on_host(topology.host_of_rank[world.rank()]));
    if (world.rank() == 0) fmt::print("memory of a rank, planned:\n{}", plan.table());
  }

  // Collective over `world`.
  void print(const Communicator& world) const {
    const size_t taken = (peak_resident_bytes() - resident_at_start_) / ranks_of_process_;
    std::vector<double> most = {static_cast<double>(planned_) / kMiB, static_cast<double>(taken) / kMiB};
    Request reduced = world.all_reduce(std::span(most), ReduceOp::max);
    wait(reduced);
    if (world.rank() == 0) {
      fmt::print("memory of a rank, at most: planned {:.1f} MiB, measured {:.1f} MiB\n", most[0], most[1]);
    }
  }

 private:
  size_t ranks_of_process_;
  size_t resident_at_start_;
  size_t planned_ = 0;
};

// The run is over and its work is done, whatever becomes of its report.
void show_report_if_possible(const std::string& run_dir) {
  try {
    show_report(run_dir);
  } catch (const Error& error) {
    fmt::print("note: no report: {}\n", error.what());
  }
}

// Collective over `world`.
void clean_host(const Communicator& world) {
  if (world.transport().name() != "mpi" || world.transport().host_leader() != world.rank()) return;
  const std::vector<std::string> removed = remove_stale_segments();
  if (!removed.empty()) {
    fmt::print("note: removed {} segments of shared memory that a killed job left in /dev/shm\n", removed.size());
  }
}

void run_train(const Options& options, const Job& job) {
  std::vector<std::string> overrides = options.overrides;
  if (!options.metrics.empty()) overrides.push_back("log.metrics=" + options.metrics);
  const RunConfig config = load_run_config(options.run_file, overrides);
  check(config, job.num_ranks(options.ranks));
  if (options.print_config) {
    if (job.rank() == 0) fmt::print("{}", to_toml(config));
    return;
  }
  set_kernel_threads(static_cast<int>(config.compute.threads));
  const StopSignals signals;
  job.on_ranks(options.ranks, [&](Communicator world) {
    print_banner(world, config);
    clean_host(world);
    const MemoryReport memory(world, config, job.size() == 1 ? world.size() : 1);
    Trainer trainer(std::move(world), config);
    if (trainer.worker().world().rank() == 0) {
      fmt::print("exchange {}\n", trainer.worker().exchange_reason());
      for (const std::string& note : {trainer.schedule_note(), trainer.worker().progress_note()}) {
        if (!note.empty()) fmt::print("note: {}\n", note);
      }
    }
    trainer.run();
    memory.print(trainer.worker().world());
    if (trainer.has_traces() && trainer.worker().world().rank() == 0) show_report_if_possible(config.out);
  });
}

}  // namespace

Command train_command() {
  const auto options = std::make_shared<Options>();
  return {.name = "train",
          .summary = "trains a model as a run file says; goes on from the checkpoints that are there",
          .arguments = {{"RUN.toml", &options->run_file, any(), "the run file; launch/configs has some to start from"}},
          .overrides = &options->overrides,
          .options = {ranks_option(options->ranks),
                      {"metrics", &options->metrics, any(), "csv: metrics.csv too; the same as log.metrics=csv"},
                      {"print-config", &options->print_config, any(), "print the resolved configuration and stop"}},
          .more_help = [] { return "Keys of the run file, also as key=value:\n" + run_config_help(); },
          .run = [options](const Job& job) { run_train(*options, job); }};
}

}  // namespace cadre
