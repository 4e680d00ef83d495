// SPDX-License-Identifier: Apache-2.0
// MTP modules and a tied head read the embedding at the end of a pipeline too, on another rank than its beginning or on
// the same one: the losses of one rank, the bits of the serial run, and one embedding everywhere.
#include <gtest/gtest.h>

#include <array>
#include <string_view>

#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::pipeline_embedding_test {
namespace {

using test::expect_close;
using test::Outcome;
using test::outcome_of;
using test::RunFolder;
using test::small_run;

// The hash of the embedding on each rank that has it, of the first or of the last stage: all are the same.
void expect_one_embedding(Trainer& trainer, Communicator& world) {
  std::vector<uint64_t> hashes;
  trainer.worker().gradients().complete_values();
  for (const Parameter* parameter : trainer.worker().store().parameters()) {
    if (parameter->name() != "model.embed_tokens.weight") continue;
    const std::string_view bytes(reinterpret_cast<const char*>(parameter->value.raw()), parameter->value.bytes());
    hashes.push_back(hash_name(bytes));
  }
  ASSERT_LE(hashes.size(), 2);
  const bool has_some = !hashes.empty();
  const auto hash = has_some ? static_cast<int64_t>(hashes.front() >> 1) : int64_t{0};
  if (hashes.size() == 2) {
    EXPECT_EQ(hashes[0], hashes[1]);
  }
  const std::array<int64_t, 3> mine = {has_some ? hash : INT64_MIN, has_some ? -hash : INT64_MIN, int64_t{has_some}};
  const auto extremes = wait(world.all_reduce(mine, ReduceOp::max));
  EXPECT_EQ(extremes[2], 1);
  EXPECT_EQ(extremes[0], -extremes[1]) << "table and copy went different ways";
}

std::vector<double> losses_with_embedding(Communicator world, const RunConfig& config, int steps, bool save = false) {
  Communicator all = world.duplicate("check");
  Trainer trainer(std::move(world), config);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    const GlobalStep global = trainer.step().global;
    losses.push_back(global.loss);
    if (config.model.num_nextn_predict_layers > 0) losses.push_back(global.mtp_loss);
  }
  expect_one_embedding(trainer, all);
  if (save) trainer.save();
  losses.push_back(trainer.evaluate());
  return losses;
}

// On one rank; each rank finds them out for itself.
std::vector<double> losses_alone(const Communicator& world, RunConfig config, int steps) {
  config.out += fmt::format(".alone{}", world.rank());
  std::vector<double> losses;
  test::on_one_rank([&](Communicator one) { losses = losses_with_embedding(std::move(one), config, steps); });
  return losses;
}

// The losses of one rank and the bits of the serial run.
void expect_same_training(Communicator& world, RunConfig config, const std::vector<double>& expected) {
  SCOPED_TRACE(fmt::format("{} over {} rows, {} MTP modules, tied {}", config.parallel.schedule,
                           config.parallel.pipeline, config.model.num_nextn_predict_layers,
                           config.model.tie_word_embeddings));
  expect_close(expected, losses_with_embedding(world.duplicate("run"), config, 2));
  const Outcome overlapped = outcome_of(world.duplicate("overlapped"), config, 1);
  config.parallel.overlap = false;
  EXPECT_EQ(overlapped, outcome_of(world.duplicate("serial"), config, 1));
}

struct Case {
  int64_t mtp_modules;
  bool tied;
  std::vector<const char*> schedules;
};

// Over as many rows as there are ranks, one of the cases over rows of two.
TEST(PipelineEmbedding, changes_no_loss) {
  const std::vector<Case> cases = {
      {1, false, {"1f1b", "zb1p", "dualpipe", "dualpipev"}}, {2, true, {"1f1b"}}, {0, true, {"dualpipe"}}};
  test::on_ranks(
      [&](Communicator& world) {
        const RunFolder folder(world);
        for (const auto& [mtp_modules, tied, schedules] : cases) {
          RunConfig config = small_run(folder.path());
          config.model.num_hidden_layers = 8;
          config.model.num_nextn_predict_layers = mtp_modules;
          config.model.tie_word_embeddings = tied;
          config.train.batch = 10;
          config.train.micro_batches = 8;  // of 1 and 2 sequences: ranks without any
          const std::vector<double> expected = losses_alone(world, config, 2);
          for (const char* schedule : schedules) {
            config.parallel.schedule = schedule;
            const bool spreads_data = mtp_modules == 2 && world.size() > 2;
            config.parallel.pipeline = spreads_data ? world.size() / 2 : world.size();
            expect_same_training(world, config, expected);
          }
        }
      },
      {2, 4});
}

// One embedding is in the files, with its moments, and both ends of another pipeline begin with it.
TEST(PipelineEmbedding, is_saved_once_and_resumed_by_any_pipeline) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        for (const bool tied : {false, true}) {
          RunConfig config = small_run(folder.path());
          config.out += tied ? ".tied" : ".two";
          config.model.num_hidden_layers = 4;
          config.model.num_nextn_predict_layers = 1;
          config.model.tie_word_embeddings = tied;
          config.train.batch = 8;
          config.train.micro_batches = 8;
          RunConfig whole = config;
          whole.out += ".whole";
          const std::vector<double> expected = losses_with_embedding(world.duplicate("whole"), whole, 4);
          config.parallel.pipeline = 2;
          losses_with_embedding(world.duplicate("first"), config, 2, /*save=*/true);
          for (const char* schedule : {"1f1b", "dualpipev", "pair"}) {
            SCOPED_TRACE(fmt::format("{}, tied {}", schedule, tied));
            RunConfig other = test::resumed(config);
            other.parallel.schedule = schedule;
            other.parallel.pipeline = std::string_view(schedule) == "pair" ? 1 : 2;
            const std::vector<double> rest = losses_with_embedding(world.duplicate("second"), other, 2);
            expect_close({expected.begin() + 4, expected.end()}, rest);
          }
        }
      },
      {2});
}

}  // namespace
}  // namespace cadre::pipeline_embedding_test
