// SPDX-License-Identifier: Apache-2.0
// Training with exchange.balance = host is the same training: losses of the first step to the bit, gradients up to the order of
// sums, checkpoints, moves of experts, groups, pipelines; and every rank of a host computes as many rows as another.
#include "runtime/parallel/host_experts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "comm/exchange/host_balance.hpp"
#include "runtime/infer/generate.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::host_experts_test {
namespace {

using test::expect_close;
using test::RunFolder;
using test::small_run;
using test::train;

constexpr int kBalancedExperts = 8;

// A bias of selection that nothing updates sends most tokens to the first experts, which lie on the first ranks.
RunConfig skewed_run(const std::filesystem::path& folder, const char* balance) {
  RunConfig config = small_run(folder);
  config.model.n_routed_experts = kBalancedExperts;
  config.model.bias_update_rate = 0.0;
  config.model.aux_loss_alpha = 0.0;
  config.train.batch = 16;
  config.exchange.combine = "slot_order";
  config.exchange.balance = balance;
  return config;
}

void skew_experts(const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    if (!parameter->name().ends_with("e_score_correction_bias")) continue;
    auto* const bias = parameter->value.data<float>();
    for (int64_t e = 0; e < parameter->value.numel(); ++e) bias[e] = e < 2 ? 1.0F : 0.1F / static_cast<float>(e);
    ++parameter->version;
  }
}

struct SkewedOutcome {
  std::vector<double> losses;                       // of steps, then the validation loss
  std::vector<int64_t> rows;                        // of each rank in the first step
  int64_t moved = 0;                                // copies of experts
  std::map<std::string, std::vector<float>> grads;  // of this rank's experts, of the first step
};

SkewedOutcome run_skewed(Communicator world, const RunConfig& config, int steps, bool save = false) {
  SkewedOutcome outcome;
  Trainer trainer(std::move(world), config);
  if (config.checkpoint.resume == "never") skew_experts(trainer.worker().store());
  for (int i = 0; i < steps; ++i) {
    const StepRecord record = trainer.step();
    outcome.losses.push_back(record.global.loss);
    outcome.moved += record.rebalance.moved;
    if (i > 0) continue;
    outcome.rows = record.global.device_slots;
    for (const Parameter* parameter : trainer.worker().store().parameters()) {
      if (!trainer.worker().counts(*parameter) || parameter->placement != Placement::expert) continue;
      const auto* grad = parameter->grad.data<float>();
      outcome.grads[parameter->name()].assign(grad, grad + parameter->grad.numel());
    }
  }
  outcome.losses.push_back(trainer.evaluate());
  if (save) trainer.save();
  return outcome;
}

double busiest_over_mean(const std::vector<int64_t>& rows) {
  const auto total = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0}));
  return static_cast<double>(std::ranges::max(rows) * static_cast<int64_t>(rows.size())) / total;
}

void expect_same_training(Communicator& world, const RunConfig& plain, const RunConfig& balanced) {
  const SkewedOutcome expected = run_skewed(world.duplicate("none"), plain, 8);
  const SkewedOutcome actual = run_skewed(world.duplicate("host"), balanced, 8);
  EXPECT_LT(expected.losses[7], 0.9 * expected.losses[0]) << "nothing was learned";
  EXPECT_EQ(expected.losses[0], actual.losses[0]) << "forward bits";
  expect_close(expected.losses, actual.losses);
  // 384 tokens with 2 slots, 2 micro-batches, 2 layers: 384 rows a layer and micro-batch.
  const double tile = 16.0 * world.size() / 384.0;
  if (test::num_hosts() == 1) {  // ranks of different hosts are not evened out
    EXPECT_LE(busiest_over_mean(actual.rows), 1.0 + tile + 0.01);
  } else {
    EXPECT_LT(busiest_over_mean(actual.rows), busiest_over_mean(expected.rows));
  }
  if (world.size() > 1) {
    EXPECT_GT(busiest_over_mean(expected.rows), 1.4) << "nothing is skewed";
  }
  ASSERT_EQ(expected.grads.size(), actual.grads.size());
  for (const auto& [name, grad] : expected.grads) {
    double scale = 0.0;
    for (const float value : grad) scale = std::max(scale, std::abs(double{value}));
    const std::vector<float>& other = actual.grads.at(name);
    for (size_t i = 0; i < grad.size(); ++i) {
      // Sums of some hundred products, added in another order: 100 u of the largest element.
      ASSERT_NEAR(grad[i], other[i], 100 * 0x1p-24 * scale) << name << " " << i;
    }
  }
}

TEST(HostExperts, training_is_the_same_with_even_ranks) {
  test::on_ranks([](Communicator& world) {
    const RunFolder folder(world);
    for (const char* strategy : {"shared", "hierarchical", "flat"}) {
      SCOPED_TRACE(strategy);
      if (std::string_view(strategy) == "shared" && test::num_hosts() > 1) continue;
      RunConfig plain = skewed_run(folder.path(), "none");
      RunConfig balanced = skewed_run(folder.path(), "host");
      plain.exchange.strategy = balanced.exchange.strategy = strategy;
      expect_same_training(world, plain, balanced);
    }
  });
}

// Kernels keep copies of weights in bf16, of guests too, which must not outlive the weights.
TEST(HostExperts, training_in_bf16_is_the_same) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig plain = skewed_run(folder.path(), "none");
        RunConfig balanced = skewed_run(folder.path(), "host");
        plain.compute.precision = balanced.compute.precision = "bf16";
        expect_same_training(world, plain, balanced);
      },
      {2, 4});
}

TEST(HostExperts, same_run_gives_the_same_bits) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = skewed_run(folder.path(), "host");
        EXPECT_EQ(run_skewed(world.duplicate("first"), config, 4).losses,
                  run_skewed(world.duplicate("second"), config, 4).losses);
      },
      {4});
}

// Two groups of experts whose moments are shared out; pipelines; behind overlap; with parts computed once more.
TEST(HostExperts, run_in_groups_pipelines_and_behind_overlap) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const auto both = [&](auto&& change) {
          RunConfig plain = skewed_run(folder.path(), "none");
          RunConfig balanced = skewed_run(folder.path(), "host");
          change(plain);
          change(balanced);
          expect_close(run_skewed(world.duplicate("none"), plain, 4).losses,
                       run_skewed(world.duplicate("host"), balanced, 4).losses);
        };
        both([](RunConfig& config) { config.parallel.expert = 2; });
        both([](RunConfig& config) {
          config.parallel.schedule = "pair";
          config.train.micro_batches = 4;
        });
        both([](RunConfig& config) {
          config.parallel.schedule = "dualpipe";
          config.parallel.pipeline = 2;
          config.model.num_hidden_layers = 4;
          config.train.micro_batches = 4;
        });
        both([](RunConfig& config) { config.train.recompute = "layer"; });
        both([](RunConfig& config) { config.model.num_nextn_predict_layers = 1; });
      },
      {4});
}

TEST(HostExperts, stay_in_place_while_experts_move) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = skewed_run(folder.path(), "host");
        const std::vector<double> expected = run_skewed(world.duplicate("calm"), config, 6).losses;
        config.parallel.rebalance = 1;  // looks after each step
        const SkewedOutcome moving = run_skewed(world.duplicate("moving"), config, 6);
        expect_close(expected, moving.losses);
        EXPECT_GT(wait(world.all_reduce(moving.moved, ReduceOp::max)), 0) << "no expert moved";
      },
      {2, 4});
}

std::vector<double> on_threads(int ranks, const RunConfig& config, int steps, bool save = false) {
  std::vector<double> losses;
  run_local_ranks(ranks, [&](std::unique_ptr<Transport> transport) {
    const bool is_first = transport->rank() == 0;
    SkewedOutcome mine = run_skewed(Communicator(std::move(transport), "world"), config, steps, save);
    if (is_first) losses = std::move(mine.losses);
  });
  return losses;
}

TEST(HostExperts, resume_on_any_number_of_ranks) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", test::some_text());
  RunConfig config = skewed_run(folder.path(), "host");
  const std::vector<double> whole = on_threads(4, config, 8);
  on_threads(4, config, 4, /*save=*/true);
  config.checkpoint.resume = "auto";
  const std::vector<double> rest(whole.begin() + 4, whole.end());
  EXPECT_EQ(rest, on_threads(4, config, 4));
  for (const int ranks : {1, 2, 3}) expect_close(rest, on_threads(ranks, config, 4));
}

// Scores have the bits of one rank, and so have texts: products of weights that do not train are row by row.
TEST(HostExperts, generate_the_same_texts) {
  test::on_ranks([](Communicator& world) {
    WorkerOptions options;
    options.model = skewed_run("nowhere", "host").model;
    options.model.initializer_range = 0.3;
    options.exchange.combine = "slot_order";
    options.with_grad = false;
    std::vector<std::vector<int32_t>> expected;
    for (const char* balance : {"none", "host"}) {
      options.exchange.balance = balance;
      Worker worker(world.duplicate(balance), options);
      worker.store().initialise(5);
      skew_experts(worker.store());
      std::vector<TextRequest> requests;
      for (int32_t i = 0; i < 12; ++i) requests.push_back({std::vector<int32_t>(30, 7 + i), {.temperature = 0.0}});
      std::vector<std::vector<int32_t>> texts(requests.size());
      generate(worker, requests, {.max_new = 10, .emits_on_all_ranks = true},
               [&](size_t text, std::optional<int32_t> token) {
                 if (token) texts.at(text).push_back(*token);
               });
      if (std::string_view(balance) == "none") expected = texts;
      EXPECT_EQ(expected, texts);
    }
  });
}

TEST(HostExperts, have_no_replicas_beside_them) {
  test::on_ranks(
      [](Communicator& world) {
        WorkerOptions options;
        options.model = skewed_run("nowhere", "host").model;
        options.exchange.balance = "host";
        options.parallel.redundant_experts = 2;
        const std::string message = test::message_of([&] { Worker worker(world.duplicate("refused"), options); });
        EXPECT_NE(message.find("exchange.balance = host, allowed: none where experts have replicas"), std::string::npos)
            << message;
      },
      {2});
}

}  // namespace
}  // namespace cadre::host_experts_test
