// SPDX-License-Identifier: Apache-2.0
// Muon against numbers of fp64 arithmetic outside of the program (NumPy), and runs with it: on any ranks, sharded or not, from
// checkpoints and from partner copies.
#include "runtime/optim/muon.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "runtime/optim/optimizer.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::muon_test {
namespace {

using test::outcome_of;
using test::RunFolder;

// Matrices with W[i] = cos(0.7 i + s) at first and gradients sin(1.3 i + t + s) in step t, i counting elements by rows. Steps
// t = 1, 2, 3 with g = 0.5 grad: M = 0.95 M + g, O = five times X <- 3.4445 X + (-4.7750 A + 2.0315 A A) X with A = X X^T, from
// X = (g + 0.95 M) / (its Frobenius norm + 1e-7), and W -= 0.02 (0.2 sqrt(max(rows, columns)) O + 0.1 W).
struct Expected {
  int64_t rows;
  int64_t width;
  double start;
  std::vector<double> values;
};

const std::vector<Expected>& expected_values() {
  static const std::vector<Expected> expected = {
      {2,
       3,
       0.0,
       {0.982716848399547, 0.749168879277737, 0.174309564502659, -0.501228922965553, -0.951459224655426,
        -0.939403523030989}},
      {4,
       3,
       0.25,
       {0.95243067823766, 0.579694149172873, -0.0671678399059497, -0.693565908842856, -0.998723876874789,
        -0.82533511334259, -0.254326612897839, 0.432635378651732, 0.904786602473343, 0.948806071683952,
        0.556856247084072, -0.0893653178836751}},
      {3,
       3,
       0.5,
       {0.863672284025975, 0.363812549545073, -0.310759249411625, -0.850698207866949, -0.9917350740595,
        -0.656229124990846, -0.00519740786351662, 0.64203078802016, 0.976222595970435}},
      {5,
       2,
       0.75,
       {0.719061299854149, 0.127274909838621, -0.531456067540142, -0.952819030398515, -0.925647528849377,
        -0.449595506879521, 0.244292947040303, 0.812676383217918, 0.987494779426902, 0.702528496223557}}};
  return expected;
}

// The first three are parts of one parameter.
struct Matrices {
  explicit Matrices(DType dtype) {
    store.add(fused);
    store.add(tall);
    store.allocate(dtype, /*with_grad=*/true, /*dry_run=*/false);
    fill([](Parameter& parameter) { return parameter.value; },
         [](double i, double start) { return std::cos(0.7 * i + start); });
  }

  template <class Member, class Value>
  void fill(Member&& member, Value&& value) {
    for (size_t m = 0; m < expected_values().size(); ++m) {
      const Tensor rows = matrix(m, member);
      for (int64_t i = 0; i < rows.numel(); ++i) {
        test::put_element(rows, i, value(static_cast<double>(i), expected_values()[m].start));
      }
    }
  }

  template <class Member>
  Tensor matrix(size_t m, Member&& member) {
    const bool is_part = m + 1 < expected_values().size();
    Parameter& parameter = is_part ? fused : tall;
    const ParameterPart& part = parameter.parts[is_part ? m : 0];
    return member(parameter).rows(part.first_row, part.num_rows);
  }

  void three_steps(const Kernels& kernels) {
    TrainConfig config;
    config.optim.name = "muon";
    config.weight_decay = 0.1;
    Optimizer optimizer(store, config);
    for (int64_t step = 1; step <= 3; ++step) {
      fill([](Parameter& parameter) { return parameter.grad; },
           [&](double i, double start) { return std::sin(1.3 * i + static_cast<double>(step) + start); });
      optimizer.update(kernels, 0.02, 0.5, step);
    }
  }

  void expect(double tolerance) {
    for (size_t m = 0; m < expected_values().size(); ++m) {
      const Tensor rows = matrix(m, [](Parameter& parameter) { return parameter.value; });
      for (int64_t i = 0; i < rows.numel(); ++i) {
        EXPECT_NEAR(element(rows, i), expected_values()[m].values[static_cast<size_t>(i)], tolerance) << m << " " << i;
      }
    }
  }

  Parameter fused = make_weight({{"wide", 2}, {"high", 4}, {"square", 3}}, 3, 0.0);
  Parameter tall = make_weight({{"tall", 5}}, 2, 0.0);
  ParameterStore store;
};

TEST(Muon, three_steps_of_each_part) {
  Matrices matrices(DType::f64);
  matrices.three_steps(*make_reference_kernels());
  matrices.expect(2e-13);  // fifteen digits are given
}

// Five iterations multiply a rounding error by 3.44^5 = 480 at most, and a step moves a value by less than 0.01; bf16 products
// would be 1e-5 off.
TEST(Muon, the_cpu_multiplies_in_fp32) {
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp8}) {
    Matrices matrices(DType::f32);
    matrices.three_steps(*make_cpu_kernels(precision));
    matrices.expect(2e-6);
  }
}

TEST(Muon, takes_matrices_and_leaves_the_rest_to_adamw) {
  Parameter matrix = make_weight({{"matrix", 3}}, 4, 0.0);
  Parameter row = make_weight({{"row", 1}}, 4, 0.0);
  Parameter gain = make_vector("gain", 4, Init::Kind::ones);
  Parameter table = make_table("table", 6, 4, 0.0);
  ParameterStore store;
  for (Parameter* parameter : {&matrix, &row, &gain, &table}) store.add(*parameter);
  store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false);
  TrainConfig config;
  config.optim.name = "muon";
  config.moments = "bf16";
  const Optimizer optimizer(store, config);
  ASSERT_EQ(optimizer.moments().size(), 4U);
  for (const Optimizer::Moments& moments : optimizer.moments()) {
    EXPECT_EQ(moments.are_of_muon(), moments.parameter == &matrix) << moments.parameter->name();
    EXPECT_EQ(moments.first.dtype(), moments.are_of_muon() ? DType::f32 : DType::bf16);
    EXPECT_EQ(moment_bytes(*moments.parameter, config), 4U * static_cast<size_t>(moments.parameter->value.numel()));
  }
}

RunConfig muon_run(const std::filesystem::path& folder) {
  RunConfig config = test::small_run(folder);
  config.parallel.expert = 1;
  config.train.optim.name = "muon";
  config.train.schedule = "constant";
  config.log.every = 1;
  return config;
}

TEST(Muon, ranks_change_no_loss_and_sharding_no_bit) {
  test::on_ranks(
      [&](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = muon_run(folder.path());
        RunConfig one = config;
        one.out += fmt::format(".{}", world.rank());
        const std::vector<double> expected = test::train_on_threads(1, one, 8);
        EXPECT_LT(expected.back(), 0.9 * expected.front());
        std::vector<RunConfig> configs(2, config);
        configs[1].parallel.expert = 0;  // all
        if (world.size() == 2) {
          configs.push_back(config);
          configs.back().parallel.pipeline = 2;
        }
        for (size_t i = 0; i < configs.size(); ++i) {
          SCOPED_TRACE(i);
          const std::vector<double> losses = test::train(world.duplicate("losses"), configs[i], 8);
          test::expect_close(expected, losses);
          RunConfig whole = configs[i];
          whole.parallel.shard_optimizer = false;
          EXPECT_EQ(outcome_of(world.duplicate("sharded"), configs[i], 4),
                    outcome_of(world.duplicate("whole"), whole, 4));
        }
        config.train.optim.name = "adamw";
        EXPECT_NE(test::train(world.duplicate("adamw"), config, 2).back(), expected[2]);
      },
      {1, 2, 3});
}

TEST(Muon, any_ranks_go_on_from_a_checkpoint) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = muon_run(folder.path());
        const std::vector<double> expected = test::train_on_threads(1, config, 6);
        for (const auto& [before, after] : {std::pair{3, 2}, {2, 3}, {1, 3}}) {
          SCOPED_TRACE(fmt::format("{} ranks, then {}", before, after));
          RunConfig run = config;
          run.out += fmt::format(".{}{}", before, after);
          test::train_on_threads(before, run, 3, /*save=*/true);
          test::expect_close({expected.begin() + 3, expected.end()},
                             test::train_on_threads(after, test::resumed(run), 3));
          RunConfig other = test::resumed(run);
          other.train.optim.name = "adamw";
          const std::string error = test::error_of([&] { test::train_on_threads(after, other, 1); });
          EXPECT_NE(error.find("exp_avg"), std::string::npos) << error;
          EXPECT_NE(error.find("optim.name = \"adamw\", was \"muon\""), std::string::npos) << error;
        }
      },
      {1});
}

// Of three ranks one is gone after step 3; the others have all of the state in memory.
TEST(Muon, survivors_go_on_from_partner_copies) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = muon_run(folder.path());
        config.checkpoint.partner_copies = 1;
        config.checkpoint.partner_every = 1;
        config.recover = "survivors";
        RunConfig one = config;
        one.out += fmt::format(".{}", world.rank());
        const std::vector<double> expected = test::train_on_threads(1, one, 6);
        PartnerCopies copies;
        config.train.steps = 3;
        Trainer(world.duplicate("all"), config, &copies).run();
        const bool lives = world.rank() != 1;
        Communicator group = world.split(lives ? 0 : 1, world.rank(), "survivors");
        if (!lives) return;
        config.train.steps = 30;
        config.out += ".survivors";
        Trainer trainer(std::move(group), config, &copies);
        EXPECT_EQ(trainer.steps_done(), 3);
        for (size_t step = 3; step < 6; ++step) {
          EXPECT_NEAR(trainer.step().global.loss, expected[step], test::kRankTolerance * expected[step]) << step;
        }
      },
      {3});
}

// What an optimiser takes is what the plan says.
TEST(Muon, the_plan_knows_its_memory) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = muon_run(folder.path());
        Trainer trainer(world.duplicate("run"), config);
        size_t moments = 0;
        size_t scratch = 0;
        for (const Optimizer::Moments& kept : trainer.optimizer().moments()) {
          moments += kept.first.bytes() + (kept.second.defined() ? kept.second.bytes() : 0);
          if (kept.are_of_muon()) scratch = std::max(scratch, muon_scratch_bytes(*kept.parameter));
        }
        std::vector<size_t> planned;
        for (const MemoryLine& line : plan_memory(config, Topology::uniform(1, world.size()), world.rank()).lines) {
          if (line.what == "optimizer moments" || line.what == "optimizer updates") planned.push_back(line.bytes);
        }
        EXPECT_EQ(planned, (std::vector<size_t>{moments, scratch}));
      },
      {1, 2, 3});
}

}  // namespace
}  // namespace cadre::muon_test
