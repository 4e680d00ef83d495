// SPDX-License-Identifier: Apache-2.0
// Trains, and after each step moves all experts to the next rank, in pieces of 4 KiB; a file `moving` in the folder of the run
// says that a move is under way. For tests/campaigns/kill_moves.sh, which kills it there.
// Usage: moving_victim moves|stays RUN.toml [key=value ...]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>

#include "launch/job.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/parallel/expert_move.hpp"
#include "runtime/train/trainer.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = 4096;
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

void move_all(Trainer& trainer, const fs::path& flag) {
  Worker& worker = trainer.worker();
  const bool is_first = worker.world().rank() == 0;
  const auto is_expert = [](const Parameter& parameter) { return parameter.placement == Placement::expert; };
  const ExpertState state = [&] {
    std::vector<NamedTensor> tensors = name_values(worker.store(), is_expert);
    std::ranges::move(name_moments(trainer.optimizer(), is_expert), std::back_inserter(tensors));
    return tensors;
  };
  if (is_first) std::ofstream(flag) << "a move\n";
  move_experts(worker, moved_on(worker.expert_maps(), moe_layers_of(worker.model().config())), state, kPieceBytes);
  Request together = worker.world().barrier();
  worker.await(together);
  if (is_first) fs::remove(flag);
}

void train(Communicator world, const RunConfig& config, bool moves) {
  const bool is_first = world.rank() == 0;
  Trainer trainer(std::move(world), config);
  std::ofstream losses;
  if (is_first) losses.open(fs::path(config.out) / "losses", std::ios::app);
  while (trainer.steps_done() < config.train.steps) {
    const StepRecord record = trainer.step();
    if (is_first) losses << fmt::format("{} {:.17g}\n", record.step, record.global.loss) << std::flush;
    if (moves) move_all(trainer, fs::path(config.out) / "moving");
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
