// SPDX-License-Identifier: Apache-2.0
// The memory of a rank against what a run takes of its arena, and the parts that are formulas.
#include "runtime/train/memory_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>

#include "comm/transport/local.hpp"
#include "layers/kernels/product_choice.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::memory_plan_test {
namespace {

using test::small_run;
using test::some_text;

// The dry run walks the code that the step walks, so only the raggedness of routing tells them apart.
void check_planned_activations(const RunConfig& config, int num_ranks, double most_over = 0.25) {
  run_local_ranks(num_ranks, [&](std::unique_ptr<Transport> transport) {
    const int rank = transport->rank();
    const MemoryPlan plan = plan_memory(config, Topology::uniform(1, num_ranks), rank);
    Trainer trainer(Communicator(std::move(transport), "world"), config);
    trainer.step();
    const auto measured = static_cast<double>(trainer.worker().lanes().peak_activation_bytes());
    EXPECT_GT(plan.activation_bytes(), 20000U);
    EXPECT_GT(static_cast<double>(plan.activation_bytes()), 0.75 * measured) << "rank " << rank;
    EXPECT_LT(static_cast<double>(plan.activation_bytes()), (1.0 + most_over) * measured) << "rank " << rank;
  });
}

TEST(MemoryPlan, foresees_the_memory_of_a_step) {
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  RunConfig config = small_run(folder.path());
  config.model.topk_method = TopkMethod::greedy;
  for (const int num_ranks : {1, 2, 4}) {
    SCOPED_TRACE(num_ranks);
    check_planned_activations(config, num_ranks);
  }
}

// Where rows travel as messages, micro-batches take turns with the memory for work: of each schedule as many as are at work at once.
TEST(MemoryPlan, foresees_the_memory_of_micro_batches_that_take_turns) {
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  RunConfig config = small_run(folder.path());
  config.model.topk_method = TopkMethod::greedy;
  config.model.num_hidden_layers = 8;
  config.exchange.strategy = "flat";
  config.train.batch = 16;
  config.train.micro_batches = 8;
  config.parallel.pipeline = 4;
  for (const char* schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
    for (const char* recompute : {"none", "layer"}) {
      SCOPED_TRACE(fmt::format("{}, {}", schedule, recompute));
      config.parallel.schedule = schedule;
      config.train.recompute = recompute;
      // Each micro-batch is planned as if it were at the larger of a rank's two stages.
      const bool has_two_stages = std::string_view(schedule).starts_with("dualpipe");
      check_planned_activations(config, 4, has_two_stages ? 0.6 : 0.25);
    }
  }
}

// Of the first row of a pipeline 4 micro-batches are under way and one is at work; it keeps a row of each token of each layer and
// what it began with.
TEST(MemoryPlan, a_micro_batch_that_recomputes_keeps_the_inputs_of_layers) {
  RunConfig config = small_run("unused");
  config.model.num_hidden_layers = 8;
  config.exchange.strategy = "flat";
  config.train.batch = 16;
  config.train.micro_batches = 8;
  config.train.recompute = "layer";
  config.parallel.pipeline = 4;
  config.parallel.schedule = "1f1b";
  const MemoryPlan first = plan_memory(config, Topology::uniform(4, 1), 0);
  EXPECT_EQ(first.num_lanes, 4);
  EXPECT_EQ(first.num_works, 1);
  const auto rows = static_cast<size_t>(2 * config.data.sequence_length * config.model.hidden_size) * sizeof(float);
  EXPECT_EQ(first.lane_bytes, 3 * rows);
  EXPECT_GT(first.work_bytes, 4 * rows);
  const MemoryPlan last = plan_memory(config, Topology::uniform(4, 1), 3);
  EXPECT_EQ(last.num_lanes, 1);
}

// An evaluation keeps no more than the plan of a step, whatever that computes again, and has the same loss.
TEST(MemoryPlan, foresees_the_memory_of_an_evaluation) {
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  RunConfig config = small_run(folder.path());
  config.model.num_hidden_layers = 16;
  config.data.validation_fraction = 0.3;
  std::vector<double> losses;
  test::make_latent(config.model);
  for (const char* recompute : {"none", "activations", "mla_up", "attention", "every:2", "layer"}) {
    SCOPED_TRACE(recompute);
    config.train.recompute = recompute;
    test::on_one_rank([&](Communicator world) {
      Trainer trainer(std::move(world), config);
      losses.push_back(trainer.evaluate());
      EXPECT_LE(trainer.worker().lanes().peak_activation_bytes(),
                plan_memory(config, Topology::uniform(1, 1), 0).activation_bytes());
    });
  }
  EXPECT_EQ(losses, std::vector<double>(6, losses.front()));
}

size_t bytes_of(const RunConfig& config, const char* what, int ranks_of_process = 1) {
  const MemoryPlan plan = plan_memory(config, Topology::uniform(1, 1), 0, ranks_of_process);
  const auto line = std::ranges::find(plan.lines, what, &MemoryLine::what);
  return line == plan.lines.end() ? 0 : line->bytes;
}

// The widest product of rows is that of the dense layer, [2 * 48, 32]: 96 + 32 values of each of 4 sequences of 24 tokens.
TEST(MemoryPlan, counts_rounded_operands) {
  RunConfig config = small_run("unused");
  EXPECT_EQ(bytes_of(config, "operands of products"), 0U);
  config.model.vocab_size = 64;
  for (const char* precision : {"bf16", "fp8"}) {
    config.compute.precision = precision;
    EXPECT_EQ(bytes_of(config, "operands of products"), 4U * (96 + 32) * 4 * 24) << precision;
  }
  config.model.vocab_size = 256;
  EXPECT_EQ(bytes_of(config, "operands of products"), 4U * (256 + 32) * 4 * 24);
}

// A device keeps each weight of a product once more, rounded, and rounds the operands of one product at a time. It sums gradients
// where they are.
TEST(MemoryPlan, counts_what_products_of_a_device_keep) {
  RunConfig config = small_run("unused");
  config.compute.device = "cuda";
  EXPECT_EQ(bytes_of(config, "packed weights"), 0U);
  EXPECT_EQ(bytes_of(config, "gradient reduction"), 0U);
  config.compute.precision = "fp8";
  const size_t fp8 = bytes_of(config, "packed weights");
  config.compute.precision = "bf16";
  EXPECT_EQ(2 * bytes_of(config, "packed weights"), fp8);
  config.model.tie_word_embeddings = true;  // else the table is no product
  const MemoryPlan plan = plan_memory(config, Topology::uniform(1, 1), 0);
  EXPECT_NEAR(static_cast<double>(bytes_of(config, "packed weights")), 0.5 * static_cast<double>(plan.lines[0].bytes),
              20'000.0);
  EXPECT_EQ(bytes_of(config, "operands of products"), 2U * (256 + 32) * 4 * 24);
}

// 1000 x 1024 values of each of two tables and more: whole pages of 2 MiB.
TEST(MemoryPlan, counts_whole_huge_pages_of_large_blocks) {
  RunConfig config = small_run("unused");
  EXPECT_NE(bytes_of(config, "parameters") % (2 << 20), 0U);
  config.model.vocab_size = 32'000;
  for (const char* what : {"parameters", "gradients", "optimizer moments"}) {
    EXPECT_GE(bytes_of(config, what), 2U * 4 * 32'000 * 32) << what;
    EXPECT_EQ(bytes_of(config, what) % (2 << 20), 0U) << what;
  }
}

// A rank alone sends messages to itself, whatever auto takes elsewhere.
TEST(MemoryPlan, counts_what_one_rank_exchanges) {
  RunConfig config = small_run("unused");
  const size_t by_itself = plan_memory(config, Topology::uniform(1, 1), 0).total_bytes();
  config.exchange.strategy = "flat";
  EXPECT_EQ(plan_memory(config, Topology::uniform(1, 1), 0).total_bytes(), by_itself);
  config.exchange.strategy = "shared";
  EXPECT_NE(plan_memory(config, Topology::uniform(1, 1), 0).total_bytes(), by_itself);
}

TEST(MemoryPlan, counts_the_libraries_that_are_used) {
  RunConfig config = small_run("unused");
  EXPECT_EQ(bytes_of(config, "BLAS and MPI"), 2 * bytes_of(config, "BLAS and MPI", 2));
  config.compute.products = "openblas";
  EXPECT_EQ(bytes_of(config, "oneDNN"), 0U);
  config.compute.products = "onednn";
  EXPECT_EQ(bytes_of(config, "oneDNN") > 0, has_onednn());
}

}  // namespace
}  // namespace cadre::memory_plan_test
