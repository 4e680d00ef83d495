// SPDX-License-Identifier: Apache-2.0
// Trains, and in each step moves all experts to the next rank, in pieces of 16 KiB; a file `moving` in the folder of the run
// says what the move is at: `travels` while the passes of the step run, `switches` between the gradient norm and the update. For
// tests/campaigns/kill_moves.sh, which kills it there.
// Usage: moving_victim moves|stays RUN.toml [key=value ...]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>

#include "launch/job.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/train/trainer.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = 16384;
constexpr int kStepsOfSave = 3;

ExpertMaps moved_on(const ExpertMaps& maps, const std::vector<int>& layers) {
  ExpertMaps to = maps;
  for (const int layer : layers) {
    const ExpertMap& map = maps.of(layer);
    std::vector<std::vector<int>> experts_of(static_cast<size_t>(map.num_ranks()));
    for (int rank = 0; rank < map.num_ranks(); ++rank) {
      const std::span<const int> own = map.experts_of(rank);
      experts_of[static_cast<size_t>((rank + 1) % map.num_ranks())].assign(own.begin(), own.end());
    }
    to.set(layer, ExpertMap::of(map.num_experts(), experts_of));
  }
  return to;
}

// The step to come moves all experts.
void plan_to_move_all(Trainer& trainer, const fs::path& flag) {
  Worker& worker = trainer.worker();
  Rebalancer::MoveWatch watch;
  if (worker.world().rank() == 0) {
    watch = [flag](Rebalancer::MovePhase phase) {
      if (phase == Rebalancer::MovePhase::over) {
        fs::remove(flag);
      } else {
        std::ofstream(flag) << (phase == Rebalancer::MovePhase::travels ? "travels\n" : "switches\n");
      }
    };
  }
  const ExpertMaps maps = moved_on(worker.expert_maps(), moe_layers_of(worker.model().config()));
  trainer.rebalancer().plan(maps, {.piece_bytes = kPieceBytes, .pieces = 2}, watch);
}

void train(Communicator world, const RunConfig& config, bool moves) {
  const bool is_first = world.rank() == 0;
  Trainer trainer(std::move(world), config);
  std::ofstream losses;
  if (is_first) losses.open(fs::path(config.out) / "losses", std::ios::app);
  while (trainer.steps_done() < config.train.steps) {
    if (moves) plan_to_move_all(trainer, fs::path(config.out) / "moving");
    const StepRecord record = trainer.step();
    if (is_first) losses << fmt::format("{} {:.17g}\n", record.step, record.global.loss) << std::flush;
    if (record.step % kStepsOfSave == 0) trainer.save();
  }
  trainer.save();
  trainer.require_saved();
  if (is_first) std::ofstream(fs::path(config.out) / "FINISHED") << trainer.steps_done() << "\n";
}

}  // namespace
}  // namespace cadre

int main(int argc, char** argv) {
  std::set_terminate(cadre::terminate_job);
  const cadre::Job job(&argc, &argv, /*always_mpi=*/false);
  cadre::report_crashes();
  try {
    const std::vector<std::string> overrides(argv + 3, argv + argc);
    const cadre::RunConfig config = cadre::load_run_config(argv[2], overrides);
    const bool moves = std::string_view(argv[1]) == "moves";
    job.on_ranks(0, [&](cadre::Communicator world) { cadre::train(std::move(world), config, moves); });
  } catch (...) {
    return job.fail(cadre::as_error(std::current_exception()));
  }
  return 0;
}
