// SPDX-License-Identifier: Apache-2.0
// Routing that is recorded and replayed: training in another precision, and generation with other routers, visit the same
// experts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>

#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/infer/generate.hpp"
#include "runtime/infer/score.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/step_routing.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::replay_test {
namespace {

using test::RunFolder;
using test::small_run;

constexpr int kSteps = 4;

RunConfig recording_run(const std::filesystem::path& folder, const std::string& name) {
  RunConfig config = small_run(folder);
  config.out = (folder / name).string();
  config.log.routing = (folder / (name + ".routing")).string();
  config.train.steps = kSteps;
  config.train.learning_rate = 0.03;  // the runs drift apart
  return config;
}

std::string bytes_of_step(const RunConfig& config, int step) {
  std::ifstream file(std::filesystem::path(config.log.routing) / fmt::format("step_{:08d}.safetensors", step),
                     std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return std::move(bytes).str();
}

struct RecordedRun {
  std::vector<double> losses;
  std::string report;
};

RecordedRun run(Communicator world, const RunConfig& config) {
  Trainer trainer(std::move(world), config);
  RecordedRun all;
  for (int i = 0; i < kSteps; ++i) all.losses.push_back(trainer.step().global.loss);
  all.report = trainer.replay_report();
  return all;
}

TEST(Replay, runs_of_two_precisions_visit_the_same_experts) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig exact = recording_run(folder.path(), "fp32");
        const RecordedRun recorded = run(world.duplicate("fp32"), exact);
        EXPECT_EQ(recorded.report, "");
        RunConfig alone = recording_run(folder.path(), "alone");
        alone.compute.precision = "bf16";
        run(world.duplicate("alone"), alone);
        RunConfig narrow = recording_run(folder.path(), "bf16");
        narrow.compute.precision = "bf16";
        narrow.train.replay = exact.log.routing;
        narrow.train.recompute = "none";
        const RecordedRun replayed = run(world.duplicate("bf16"), narrow);
        EXPECT_NE(recorded.losses, replayed.losses) << "the precision changes nothing";
        int differing_files = 0;
        for (int step = 1; step <= kSteps; ++step) {
          const std::string expected = bytes_of_step(exact, step);
          ASSERT_GT(expected.size(), 100U);
          EXPECT_EQ(expected, bytes_of_step(narrow, step)) << "step " << step;
          differing_files += expected != bytes_of_step(alone, step) ? 1 : 0;
        }
        EXPECT_GT(differing_files, 0) << "without replay the runs agree too";
        // 4 steps of 7 x 24 tokens, 2 layers, 2 experts each.
        EXPECT_EQ(replayed.report.find(fmt::format("replayed {} choices", kSteps * 7 * 24 * 4)), 0U) << replayed.report;
        EXPECT_EQ(replayed.report.find(" 0.000 %"), std::string::npos) << replayed.report;
      },
      {1, 2, 4});
}

TEST(Replay, same_run_replayed_has_the_same_bits) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = recording_run(folder.path(), "run");
        const RecordedRun expected = run(world.duplicate("run"), config);
        config.out += ".again";
        config.train.replay = std::exchange(config.log.routing, "");
        const RecordedRun again = run(world.duplicate("again"), config);
        EXPECT_EQ(expected.losses, again.losses);
        EXPECT_NE(again.report.find(" 0.000 %"), std::string::npos) << again.report;
      },
      {2});
}

TEST(Replay, missing_steps_are_named_before_the_first) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  test::on_one_rank([](Communicator world) {
    const RunFolder folder(world);
    RunConfig config = recording_run(folder.path(), "run");
    run(world.duplicate("run"), config);
    config.out += ".again";
    config.train.replay = std::exchange(config.log.routing, "");
    config.train.steps = kSteps + 1;
    const std::string message = test::message_of([&] { Trainer(world.duplicate("again"), config); });
    test::expect_message(message, {"train.replay = ", "step_00000005.safetensors is missing"});
  });
}

void turn_routers(const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    if (!parameter->name().ends_with("e_score_correction_bias")) continue;
    for (int64_t e = 0; e < parameter->value.numel(); ++e) {
      parameter->value.data<float>()[e] = e % 3 == 0 ? 3.0F : -1.0F;
    }
    ++parameter->version;
  }
}

using Texts = std::vector<std::vector<int32_t>>;

Texts greedy_texts(Worker& worker, const Texts& prompts, const RecordedRouting* replay, ReplayCounts* counts) {
  std::vector<TextRequest> requests;
  for (const auto& prompt : prompts) requests.push_back({prompt, {.temperature = 0.0}});
  Texts texts = prompts;
  const GenerateStatistics statistics =
      generate(worker, requests, {.max_new = 12, .emits_on_all_ranks = true, .replay = replay},
               [&](size_t text, std::optional<int32_t> token) {
                 if (token) texts.at(text).push_back(*token);
               });
  if (counts != nullptr) *counts = statistics.replayed;
  return texts;
}

// A bias of selection that turns the routers makes other texts, unless the routing of the first is replayed: weights of
// experts do not depend on the bias.
TEST(Replay, texts_with_other_routers_are_the_same) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.model.initializer_range = 0.3;
        config.exchange.combine = "slot_order";
        const Texts prompts = {{5, 17, 3, 99, 42}, {200, 7, 7, 31, 1}, {8, 9, 10, 11, 12}};
        WorkerOptions options;
        options.model = config.model;
        options.exchange = config.exchange;
        options.with_grad = false;
        Texts expected;
        {
          Worker worker(world.duplicate("texts"), options);
          worker.store().initialise(5);
          expected = greedy_texts(worker, prompts, nullptr, nullptr);
        }
        for (const auto& text : expected) ASSERT_EQ(text.size(), expected.front().size());
        ScoreTokens tokens = {3, static_cast<int64_t>(expected.front().size()), {}};
        for (const auto& text : expected) tokens.ids.insert(tokens.ids.end(), text.begin(), text.end());
        config.data.path = config.out = "nowhere";
        config.train = TrainConfig();
        const RunConfig scoring = score_config(config, tokens);
        const std::string file = (folder.path() / "routing.safetensors").string();
        {
          const ScoringOptions wanted = {.routing = true};
          Worker worker(world.duplicate("score"), score_options(scoring, world, wanted));
          worker.store().initialise(5);
          const std::vector<ResultTensor> results = score(worker, scoring, tokens, wanted);
          std::vector<TensorSource> sources;
          for (const ResultTensor& tensor : results) {
            sources.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.memory.span()});
          }
          if (world.rank() == 0) write_safetensors(file, sources);
          Request written = world.barrier();
          wait(written);
        }
        const RecordedRouting recorded(file, config.model, std::nullopt);
        EXPECT_EQ(recorded.num_tokens(), 3 * tokens.length);
        Worker worker(world.duplicate("turned"), options);
        worker.store().initialise(5);
        turn_routers(worker.store());
        ReplayCounts counts;
        EXPECT_NE(greedy_texts(worker, prompts, nullptr, nullptr), expected) << "turned routers choose the same";
        EXPECT_EQ(greedy_texts(worker, prompts, &recorded, &counts), expected);
        // All tokens but the last one of each text are read, in 2 layers with 2 experts.
        EXPECT_EQ(counts.choices, 3 * (tokens.length - 1) * 4);
        EXPECT_GT(counts.differing, counts.choices / 10);
        const Texts two(prompts.begin(), prompts.begin() + 2);
        test::expect_message(test::message_of([&] { greedy_texts(worker, two, &recorded, nullptr); }),
                             {"the routing of 51 tokens is to be replayed, allowed: a multiple of the 2 texts"});
      },
      {1, 2});
}

}  // namespace
}  // namespace cadre::replay_test
