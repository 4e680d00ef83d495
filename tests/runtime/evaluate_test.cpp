// SPDX-License-Identifier: Apache-2.0
// Evaluation: each held-out window counts once, whatever the batch, the micro-batches, the grid and the number of ranks.
#include "runtime/train/evaluate.hpp"

#include <gtest/gtest.h>

#include "runtime/parallel/executor.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::evaluate_test {
namespace {

constexpr int64_t kLength = 16;
constexpr int64_t kWindows = 17;

// 17 windows and five tokens that fill none, of ids that follow each other but for a few.
TokenSource little_data() {
  auto ids = std::make_shared<std::vector<uint8_t>>(kWindows * kLength + 6);
  for (size_t i = 0; i < ids->size(); ++i) (*ids)[i] = static_cast<uint8_t>(i * i / 7);
  const uint8_t* first = ids->data();
  const auto count = static_cast<int64_t>(ids->size());
  return {"little data", std::move(ids), first, count, 256};
}

RunConfig run_of(int64_t batch, int64_t micro_batches) {
  RunConfig config = test::small_run("unused");
  config.data.sequence_length = kLength;
  config.model.initializer_range = 0.2;  // losses of windows that differ
  config.exchange.combine = "slot_order";
  config.train.batch = batch;
  config.train.micro_batches = micro_batches;
  return config;
}

Evaluation evaluate_on(Communicator world, const RunConfig& config, int64_t num_batches) {
  WorkerOptions options = training_options(config, world);
  options.with_grad = false;
  Worker worker(std::move(world), options);
  worker.store().initialise(5);
  const BatchReader reader(little_data(), kLength, config.train.batch, 1);
  return evaluate(worker, reader, config, num_batches);
}

Evaluation evaluate_alone(const RunConfig& config, int64_t num_batches) {
  Evaluation evaluation;
  test::on_one_rank([&](Communicator world) { evaluation = evaluate_on(std::move(world), config, num_batches); });
  return evaluation;
}

// The mean of the losses of the windows, one at a time.
TEST(Evaluate, CountsEachWindowOnce) {
  double sum = 0.0;
  for (int64_t window = 1; window <= kWindows; ++window) {
    const Evaluation so_far = evaluate_alone(run_of(1, 1), window);
    ASSERT_EQ(so_far.num_tokens, window * kLength);
    sum = so_far.loss * static_cast<double>(window);
  }
  const double mean = sum / static_cast<double>(kWindows);
  const Evaluation first = evaluate_alone(run_of(4, 1), 3);
  EXPECT_EQ(first.num_tokens, 12 * kLength);
  EXPECT_GT(std::abs(first.loss - mean), 1e-3) << "windows of equal loss show nothing";
  for (const auto& [batch, num_batches] : {std::pair<int64_t, int64_t>{4, 8}, {4, 5}, {17, 1}, {5, 100}, {64, 2}}) {
    const Evaluation evaluation = evaluate_alone(run_of(batch, 1), num_batches);
    EXPECT_EQ(evaluation.num_tokens, kWindows * kLength) << batch;
    EXPECT_NEAR(evaluation.loss, mean, 1e-6 * mean) << batch;
    EXPECT_NEAR(evaluation.loss, evaluate_alone(run_of(1, 1), kWindows).loss, 1e-6 * mean);
  }
}

TEST(Evaluate, IsTheSameOnAnyRanksMicroBatchesAndGrid) {
  const Evaluation expected = evaluate_alone(run_of(4, 1), 8);
  test::on_ranks(
      [&](Communicator& world) {
        for (const int64_t micro_batches : {1, 3, 4}) {
          for (int64_t pipeline = 1; pipeline <= std::min(3, world.size()); ++pipeline) {
            if (world.size() % pipeline != 0) continue;
            SCOPED_TRACE(fmt::format("{} micro-batches, {} rows", micro_batches, pipeline));
            RunConfig config = run_of(4, micro_batches);
            config.parallel.pipeline = pipeline;
            const Evaluation evaluation = evaluate_on(world.duplicate("run"), config, 8);
            EXPECT_EQ(evaluation.num_tokens, kWindows * kLength);
            EXPECT_EQ(evaluation.expert_counts, expected.expert_counts);
            EXPECT_NEAR(evaluation.loss, expected.loss, 1e-6 * expected.loss);
          }
        }
      },
      {1, 2, 3, 4});
}

}  // namespace
}  // namespace cadre::evaluate_test
