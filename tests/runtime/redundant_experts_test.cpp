// SPDX-License-Identifier: Apache-2.0
// Training with redundant experts is the same training: the losses of one rank without them, copies that stay equal to the
// bit, checkpoints with every expert once, and a resumed run on any number of ranks, with or without copies.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "runtime/checkpoint/file.hpp"
#include "runtime/parallel/expert_placement.hpp"
#include "runtime/placement/plan.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::redundant_experts_test {
namespace {

using test::expect_close;
using test::RunFolder;
using test::small_run;
using test::train;
using test::train_on_threads;

RunConfig redundant_run(const std::filesystem::path& folder, int redundant) {
  RunConfig config = small_run(folder);
  config.parallel.redundant_experts = redundant;
  config.exchange.combine = "slot_order";
  return config;
}

// What one rank finds without copies.
std::vector<double> alone(const RunConfig& config, const Communicator& world, int steps) {
  RunConfig plain = config;
  plain.out += fmt::format(".alone{}", world.rank());
  plain.parallel = {};
  return train_on_threads(1, plain, steps);
}

// Loads in which two experts of the first mixture layer, and two others of the second, do most of the work.
PlacementPlan skewed_plan(int num_ranks, int slots) {
  ExpertLoads loads;
  loads.layers = {1, 2};
  loads.weight = {std::vector<double>(10, 10.0), std::vector<double>(10, 10.0)};
  loads.weight[0][3] = loads.weight[0][8] = loads.weight[1][0] = loads.weight[1][9] = 60.0;
  return plan_placement(loads, {.slots = slots, .ranks = num_ranks}, PlacementPolicy::cadre, nullptr);
}

// On rank 0; the others wait.
std::string write_plan(const Communicator& world, const std::filesystem::path& folder, const PlacementPlan& plan) {
  const std::string file = (folder / "placement.json").string();
  if (world.rank() == 0) test::write_file(file, to_json(plan).dump());
  Request written = world.barrier();
  wait(written);
  return file;
}

TEST(RedundantExperts, losses_are_those_without) {
  test::on_ranks([](Communicator& world) {
    const RunFolder folder(world);
    const std::vector<double> expected = alone(redundant_run(folder.path(), 0), world, 20);
    ASSERT_LT(expected[19], 0.8 * expected[0]) << "nothing was learned";
    for (const int redundant : {3, 14}) {
      SCOPED_TRACE(redundant);
      RunConfig config = redundant_run(folder.path(), redundant);
      expect_close(expected, train(world.duplicate("run"), config, 20));
      if (world.size() % 2 != 0) continue;
      config.parallel.expert = 2;  // several groups, each with its copies
      config.exchange.combine = "partial";
      expect_close(expected, train(world.duplicate("groups"), config, 20));
    }
  });
}

TEST(RedundantExperts, lie_behind_the_experts_in_a_row) {
  const RunConfig config = redundant_run("nowhere", 6);
  const ExpertMap map = place_experts(config.model, config.parallel, 4).of(1);
  const auto experts_of = [&](int rank) {
    const std::span<const int> experts = map.experts_of(rank);
    return std::vector<int>(experts.begin(), experts.end());
  };
  EXPECT_EQ(experts_of(0), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(experts_of(1), (std::vector<int>{3, 4, 5, 6}));
  EXPECT_EQ(experts_of(2), (std::vector<int>{6, 7, 8, 9}));
  EXPECT_EQ(experts_of(3), (std::vector<int>{0, 1, 8, 9}));
  EXPECT_EQ(map.num_replicas(), 16);
  // One rank has no place for copies, and three none for more than two of each.
  EXPECT_EQ(place_experts(config.model, config.parallel, 1).of(1), ExpertMap::contiguous(10, 1));
  const RunConfig many = redundant_run("nowhere", 100);
  EXPECT_EQ(place_experts(many.model, many.parallel, 3).of(1).num_replicas(), 30);
}

TEST(RedundantExperts, lie_where_the_placement_says) {
  test::on_ranks([](Communicator& world) {
    const RunFolder folder(world);
    RunConfig config = redundant_run(folder.path(), 0);
    const std::vector<double> expected = alone(config, world, 10);
    const PlacementPlan plan = skewed_plan(world.size(), 14);
    config.parallel.placement = write_plan(world, folder.path(), plan);
    expect_close(expected, train(world.duplicate("run"), config, 10));

    const ExpertMaps maps = place_experts(config.model, config.parallel, world.size());
    EXPECT_EQ(maps.of(1), to_expert_map(plan.slots[0], 10));
    EXPECT_EQ(maps.of(2), to_expert_map(plan.slots[1], 10));
    EXPECT_EQ(maps.have_replicas(), world.size() > 1);
    if (world.size() == 1) return;
    EXPECT_FALSE(maps.of(1) == maps.of(2));
    EXPECT_GT(maps.of(1).holders(3).size(), 1U);
    EXPECT_GT(maps.of(2).holders(9).size(), 1U);
  });
}

// Two rows that hold the same stages in both directions: gradients are summed over rows, groups and copies.
TEST(RedundantExperts, run_in_pipelines_and_behind_overlap) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = redundant_run(folder.path(), 7);
        config.model.num_hidden_layers = 4;
        config.train.batch = 8;
        config.train.micro_batches = 4;
        const std::vector<double> expected = alone(config, world, 2);
        for (const char* schedule : {"pair", "dualpipe"}) {
          SCOPED_TRACE(schedule);
          config.parallel.schedule = schedule;
          config.parallel.pipeline = std::string(schedule) == "pair" ? 1 : 2;
          const std::vector<double> overlapped = train(world.duplicate("run"), config, 2);
          expect_close(expected, overlapped);
          RunConfig serial = config;
          serial.parallel.overlap = false;
          EXPECT_EQ(overlapped, train(world.duplicate("serial"), serial, 2));
        }
      },
      {4});
}

TEST(RedundantExperts, copies_stay_equal_to_the_bit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        Trainer trainer(world.duplicate("run"), redundant_run(folder.path(), 7));
        for (int i = 0; i < 6; ++i) trainer.step();
        // Each parameter's hash goes to all ranks through a table by (rank, parameter id).
        trainer.worker().gradients().complete_values();
        const auto& parameters = trainer.worker().store().parameters();
        std::map<std::string, uint64_t> mine;
        int with_copies = 0;
        for (const Parameter* parameter : parameters) {
          if (parameter->holders.size() < 2) continue;
          ++with_copies;
          Digester digester;
          digester.append({parameter->value.raw(), parameter->value.bytes()});
          mine[parameter->name()] = digester.digest().xxh64;
        }
        for (int layer = 1; layer <= 2; ++layer) {
          for (int expert = 0; expert < 10; ++expert) {
            for (const char* part : {"gate_proj", "down_proj"}) {
              const std::string name = fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer, expert, part);
              const uint64_t hash = mine.contains(name) ? mine[name] : 0;
              std::vector<int64_t> all = wait(world.all_gather(static_cast<int64_t>(hash)));
              std::erase(all, 0);
              EXPECT_LE(std::set<int64_t>(all.begin(), all.end()).size(), 1U) << name;
              if (hash != 0) {
                EXPECT_GE(all.size(), 2U) << name;
              }
            }
          }
        }
        EXPECT_GT(with_copies, 0) << "a rank without any copy proves nothing";
      },
      {2, 3});
}

TEST(RedundantExperts, any_number_of_ranks_resumes) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", test::some_text());
  const RunConfig config = redundant_run(folder.path(), 7);
  const std::vector<double> whole = train_on_threads(4, config, 12);
  train_on_threads(4, config, 6, /*save=*/true);
  RunConfig resumed = config;
  resumed.checkpoint.resume = "auto";
  const std::vector<double> rest(whole.begin() + 6, whole.end());
  EXPECT_EQ(rest, train_on_threads(4, resumed, 6));
  for (const int redundant : {0, 5}) {
    resumed.parallel.redundant_experts = redundant;
    for (const int num_ranks : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{} redundant on {} ranks", redundant, num_ranks));
      expect_close(rest, train_on_threads(num_ranks, resumed, 6));
    }
  }
}

TEST(RedundantExperts, lie_alike_for_all_ranks_or_nothing_runs) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = redundant_run(folder.path(), 0);
        const std::string file = write_plan(world, folder.path(), skewed_plan(world.size(), 14));
        if (world.rank() == 1) config.parallel.placement = file;
        test::expect_message(test::message_of([&] { train(world.duplicate("run"), config, 1); }),
                             {"parallel.placement", "is not the same on all ranks"});
      },
      {2, 4});
}

TEST(RedundantExperts, are_in_the_memory_plan) {
  const RunConfig plain = redundant_run("nowhere", 0);
  const RunConfig copied = redundant_run("nowhere", 6);
  const auto bytes = [](const RunConfig& config, const char* what) {
    const MemoryPlan plan = plan_memory(config, Topology::uniform(1, 2), 0);
    return std::ranges::find(plan.lines, what, &MemoryLine::what)->bytes;
  };
  // 3 copies on each of 2 ranks and 2 layers, of 3 matrices of 32 x 16.
  const size_t copies = size_t{3} * 2 * 3 * 32 * 16 * sizeof(float);
  EXPECT_EQ(bytes(copied, "parameters"), bytes(plain, "parameters") + copies);
  EXPECT_EQ(bytes(copied, "optimizer moments"), bytes(plain, "optimizer moments") + 2 * copies);
}

TEST(RedundantExperts, a_placement_of_something_else_is_refused) {
  const test::TemporaryDirectory folder;
  RunConfig config = redundant_run(folder.path(), 0);
  const auto refusal = [&](const PlacementPlan& plan, int num_ranks) {
    const std::string file = (folder / "placement.json").string();
    test::write_file(file, to_json(plan).dump());
    config.parallel.placement = file;
    return test::message_of([&] { place_experts(config.model, config.parallel, num_ranks); });
  };
  const PlacementPlan plan = skewed_plan(2, 14);
  EXPECT_NE(refusal(plan, 4).find("10 experts on 2 ranks, the run has 10 on 4"), std::string::npos);
  PlacementPlan other = plan;
  other.layers = {0, 1};
  EXPECT_NE(refusal(other, 2).find("layer 0"), std::string::npos);
  other.layers = {};
  other.slots.pop_back();
  EXPECT_NE(refusal(other, 2).find("1 layers, the model has 2"), std::string::npos);
  config.parallel.redundant_experts = 3;
  EXPECT_NE(refusal(plan, 2).find("redundant_experts = 3"), std::string::npos);
  config.parallel.redundant_experts = 4;
  EXPECT_EQ(refusal(plan, 2), "no error");
}

}  // namespace
}  // namespace cadre::redundant_experts_test
