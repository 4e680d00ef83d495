// SPDX-License-Identifier: Apache-2.0
// Experts that move while a run trains: their state arrives bit by bit, the run stays the same run, and the ranks of a skewed
// router become even.
#include "runtime/parallel/expert_move.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <map>

#include "comm/base/random.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/placement/rebalance.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/signals.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::expert_move_test {
namespace {

using test::resumed;
using test::RunFolder;
using test::small_run;

constexpr int kExperts = 16;

// Of 16 experts, whose state takes more than one piece of 4 KiB a tensor.
RunConfig moving_run(const std::filesystem::path& folder) {
  RunConfig config = small_run(folder);
  config.model.n_routed_experts = kExperts;
  config.model.moe_intermediate_size = 40;
  config.model.aux_loss_alpha = 0.0;
  config.model.bias_update_rate = 0.0;
  config.train.batch = 16;
  config.exchange.combine = "slot_order";
  config.train.grad_clip = 0.05;  // below the norms
  return config;
}

// Holds the routers skewed: a bias of selection that nothing updates falls off from expert to expert, and gate and
// embedding do not train.
void skew(Trainer& trainer) {
  for (Parameter* parameter : trainer.worker().store().parameters()) {
    if (!parameter->name().ends_with("e_score_correction_bias")) continue;
    auto* const bias = parameter->value.data<float>();
    for (int64_t e = 0; e < parameter->value.numel(); ++e) bias[e] = 0.06F * (1.0F - static_cast<float>(e) / kExperts);
    ++parameter->version;
  }
}

uint64_t hash_of(const Tensor& tensor) {
  Digester digester;
  digester.append({tensor.raw(), tensor.bytes()});
  return digester.digest().xxh64;
}

bool is_routed(const Parameter& parameter) { return parameter.placement == Placement::expert; }

std::vector<NamedTensor> state_of(Trainer& trainer) {
  std::vector<NamedTensor> tensors = name_values(trainer.worker().store(), is_routed);
  std::ranges::move(name_moments(trainer.optimizer(), is_routed), std::back_inserter(tensors));
  return tensors;
}

// The hash of each tensor of all ranks' experts, and how many ranks have it.
std::map<int64_t, std::map<int64_t, int>> hashes(const Communicator& world, const std::vector<NamedTensor>& tensors) {
  std::vector<int64_t> mine;
  for (const NamedTensor& tensor : tensors) {
    mine.push_back(static_cast<int64_t>(hash_name(tensor.name)));
    mine.push_back(static_cast<int64_t>(hash_of(tensor.memory)));
  }
  const int64_t longest = wait(world.all_reduce(static_cast<int64_t>(mine.size()), ReduceOp::max));
  mine.resize(static_cast<size_t>(longest), 0);
  const std::vector<int64_t> all = wait(world.all_gather(mine));
  std::map<int64_t, std::map<int64_t, int>> found;
  for (size_t i = 0; i < all.size(); i += 2) {
    if (all[i] != 0) ++found[all[i]][all[i + 1]];
  }
  return found;
}

// Every expert one rank on.
ExpertMaps rotated(const ExpertMaps& maps, const std::vector<int>& layers, int by) {
  ExpertMaps to = maps;
  for (const int layer : layers) {
    const ExpertMap& map = maps.of(layer);
    std::vector<std::vector<int>> experts_of(static_cast<size_t>(map.num_ranks()));
    for (int rank = 0; rank < map.num_ranks(); ++rank) {
      const auto own = map.experts_of(rank);
      experts_of[static_cast<size_t>((rank + by) % map.num_ranks())].assign(own.begin(), own.end());
    }
    to.set(layer, ExpertMap::of(map.num_experts(), experts_of));
  }
  return to;
}

constexpr StreamOptions kPieces = {.piece_bytes = 4096};

// In the step to come.
void plan_to_move_all(Trainer& trainer, int by) {
  trainer.rebalancer().plan(rotated(trainer.worker().expert_maps(), {1, 2}, by), kPieces);
}

TEST(ExpertMove, whole_state_arrives_to_the_bit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = moving_run(folder.path());
        for (const bool in_groups : {false, true}) {  // two groups of experts, whose moments are shared out
          if (in_groups && world.size() != 4) continue;
          config.parallel.expert = in_groups ? 2 : 0;
          const Communicator group = world.duplicate("moves");
          Trainer trainer(world.duplicate("run"), config);
          for (int i = 0; i < 3; ++i) trainer.step();
          trainer.worker().gradients().complete_values();
          const auto before = hashes(world, state_of(trainer));
          std::vector<std::string> names;
          for (const NamedTensor& tensor : state_of(trainer)) names.push_back(tensor.name);
          // Without a step between begin and end.
          ExpertMove move(trainer.worker(), const_cast<Optimizer&>(trainer.optimizer()), group,
                          rotated(trainer.worker().expert_maps(), {1, 2}, 1), kPieces);
          EXPECT_EQ(before, hashes(world, state_of(trainer)));
          EXPECT_GT(move.finish(), 0);
          EXPECT_EQ(before, hashes(world, state_of(trainer)));
          // All experts of this rank are others now.
          for (const NamedTensor& tensor : name_values(trainer.worker().store(), is_routed)) {
            EXPECT_EQ(std::ranges::count(names, tensor.name), 0) << tensor.name;
          }
        }
      },
      {2, 4});
}

TEST(ExpertMove, the_run_stays_the_same_run) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = moving_run(folder.path());
        config.out += ".stays";
        for (const bool in_groups : {false, true}) {
          config.parallel.expert = in_groups && world.size() == 4 ? 2 : 0;
          Trainer stays(world.duplicate("stays"), config);
          Trainer moves(world.duplicate("moves"), config);
          for (int i = 0; i < 8; ++i) {
            if (i % 3 != 1) plan_to_move_all(moves, 1);
            const StepRecord record = moves.step();
            EXPECT_EQ(record.rebalance.bytes > 0, i % 3 != 1);
            const StepRecord other = stays.step();
            EXPECT_EQ(record.global.loss, other.global.loss) << "step " << i;
            EXPECT_EQ(record.grad_norm, other.grad_norm) << "step " << i;
            for (Trainer* trainer : {&stays, &moves}) trainer->worker().gradients().complete_values();
            EXPECT_EQ(hashes(world, state_of(moves)), hashes(world, state_of(stays))) << "step " << i;
          }
          EXPECT_EQ(moves.evaluate(), stays.evaluate());
        }
      },
      {2, 4});
}

// What a run that moved saves in its middle is what any number of ranks goes on from.
TEST(ExpertMove, a_checkpoint_knows_no_map) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", test::some_text());
  RunConfig config = moving_run(folder.path());
  const std::vector<double> whole = test::train_on_threads(4, config, 8);
  run_local_ranks(4, [&](std::unique_ptr<Transport> transport) {
    Trainer trainer(Communicator(std::move(transport), "world"), config);
    for (int i = 0; i < 4; ++i) {
      if (i % 2 == 1) plan_to_move_all(trainer, 1);
      trainer.step();
    }
    trainer.save();
  });
  const std::vector<double> rest(whole.begin() + 4, whole.end());
  EXPECT_EQ(rest, test::train_on_threads(4, resumed(config), 4));
  test::expect_close(rest, test::train_on_threads(1, resumed(config), 4));
}

// A signal that comes while experts travel: the step ends, and what it saves goes on to the bit.
TEST(ExpertMove, a_signal_in_its_middle_loses_nothing) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", test::some_text());
  RunConfig config = moving_run(folder.path());
  config.train.steps = 8;
  const std::vector<double> whole = test::train_on_threads(4, config, 8);
  {
    const StopSignals signals;
    run_local_ranks(4, [&](std::unique_ptr<Transport> transport) {
      Trainer trainer(Communicator(std::move(transport), "world"), config);
      for (int i = 0; i < 3; ++i) trainer.step();
      const bool is_first = trainer.worker().world().rank() == 0;
      trainer.rebalancer().plan(rotated(trainer.worker().expert_maps(), {1, 2}, 1), kPieces,
                                [is_first](Rebalancer::MovePhase phase) {
                                  if (is_first && phase == Rebalancer::MovePhase::travels) std::raise(SIGTERM);
                                });
      EXPECT_EQ(trainer.run(), RunEnd::stopped);
      EXPECT_EQ(trainer.steps_done(), 4);
    });
  }
  EXPECT_EQ(std::vector<double>(whole.begin() + 4, whole.end()), test::train_on_threads(4, resumed(config), 4));
}

// A step without finite loss updates nothing; experts move in it all the same, with the state that they had.
TEST(ExpertMove, a_skipped_step_moves_what_there_was) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        Trainer trainer(world.duplicate("run"), moving_run(folder.path()));
        for (int i = 0; i < 2; ++i) trainer.step();
        trainer.worker().gradients().complete_values();
        const auto before = hashes(world, state_of(trainer));
        const ExpertMaps maps = rotated(trainer.worker().expert_maps(), {1, 2}, 1);
        trainer.rebalancer().plan(maps, kPieces);
        Parameter* const gate = *std::ranges::find(trainer.worker().store().parameters(),
                                                   "model.layers.1.mlp.gate.weight", &Parameter::name);
        const std::span<float> values(gate->value.data<float>(), static_cast<size_t>(gate->value.numel()));
        const std::vector<float> kept(values.begin(), values.end());
        std::ranges::fill(values, 3e38F);
        ++gate->version;
        const StepRecord record = trainer.step();
        std::ranges::copy(kept, values.begin());
        ++gate->version;
        EXPECT_EQ(record.skipped_steps, 1);
        EXPECT_GT(record.rebalance.bytes, 0);
        EXPECT_EQ(trainer.worker().expert_maps().of(1), maps.of(1));
        EXPECT_EQ(hashes(world, state_of(trainer)), before);
        EXPECT_TRUE(std::isfinite(trainer.step().global.loss));
      },
      {2});
}

// Enough tokens that chance makes ranks uneven by little.
RunConfig skewed_run(const std::filesystem::path& folder) {
  RunConfig config = moving_run(folder);
  config.train.batch = 64;
  config.train.learning_rate = 1e-4;
  config.train.stages = "experts";
  return config;
}

struct Course {
  std::vector<double> losses;
  std::vector<double> busiest;  // rank / mean, by step
  int64_t moved = 0;
  int64_t bytes = 0;
};

Course course(Communicator world, const RunConfig& config, int steps) {
  Trainer trainer(std::move(world), config);
  skew(trainer);
  Course course;
  for (int i = 0; i < steps; ++i) {
    const StepRecord record = trainer.step();
    course.losses.push_back(record.global.loss);
    course.busiest.push_back(balance_figures(record.global.device_slots).max_vio + 1.0);
    course.moved += record.rebalance.moved;
    course.bytes += record.rebalance.bytes;
  }
  return course;
}

TEST(ExpertMove, a_skewed_router_gets_even_ranks) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = skewed_run(folder.path());
        const Course stays = course(world.duplicate("stays"), config, 24);
        config.parallel.rebalance = kAutoRebalance;
        const Course moves = course(world.duplicate("moves"), config, 24);
        EXPECT_GE(stays.busiest.front(), 1.5);
        EXPECT_GE(stays.busiest.back(), 1.5);
        EXPECT_LE(moves.busiest[19], 1.10);
        EXPECT_EQ(moves.losses, stays.losses);
        EXPECT_TRUE(world.rank() != 0 || moves.moved > 0);
        EXPECT_GT(moves.bytes, 0);
        config.exchange.combine = "partial";
        test::expect_close(stays.losses, course(world.duplicate("partial"), config, 24).losses);
      },
      {4});
}

// Copies die with one expert and are born with another.
TEST(ExpertMove, copies_follow_the_load) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = skewed_run(folder.path());
        config.parallel.redundant_experts = 4;
        const Course stays = course(world.duplicate("stays"), config, 12);
        config.parallel.rebalance = 4;
        const Course moves = course(world.duplicate("moves"), config, 12);
        EXPECT_LE(moves.busiest.back(), 1.10);
        test::expect_close(stays.losses, moves.losses);
      },
      {4});
}

// 4 experts on each of 4 ranks and in each of 2 layers, of 3 matrices of 32 x 40: values, two moments and gradients come.
TEST(ExpertMove, is_in_the_memory_plan) {
  RunConfig config = moving_run("nowhere");
  config.parallel.rebalance = 10;
  const auto bytes = [&](int num_ranks) {
    const MemoryPlan plan = plan_memory(config, Topology::uniform(1, num_ranks), 0);
    const auto line = std::ranges::find(plan.lines, "moving experts", &MemoryLine::what);
    return line == plan.lines.end() ? 0 : line->bytes;
  };
  EXPECT_EQ(bytes(4), size_t{4} * 4 * 2 * 3 * 32 * 40 * sizeof(float));
  EXPECT_EQ(bytes(1), 0U);
}

// Where nothing can move, the run says so and goes on.
TEST(ExpertMove, says_why_nothing_moves) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = moving_run(folder.path());
        config.parallel.rebalance = 1;
        config.parallel.expert = 1;
        Trainer trainer(world.duplicate("alone"), config);
        EXPECT_NE(trainer.rebalance_note().find("each rank holds all experts"), std::string::npos);
        EXPECT_EQ(trainer.step().rebalance.moved, 0);
      },
      {2});
}

}  // namespace
}  // namespace cadre::expert_move_test
