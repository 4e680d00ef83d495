// SPDX-License-Identifier: Apache-2.0
// Drafts and company change no token: texts are what one text alone, made token by token, would be, with modules for further
// tokens that are good, random or bad, with either attention, several modules, on any number of ranks and with every exchange.
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <vector>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/infer/generate.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::speculation_test {
namespace {

using Tokens = std::vector<int32_t>;

RunConfig run_with_modules(const std::filesystem::path& folder, const std::string& model_type, int64_t modules) {
  RunConfig config = test::small_run(folder);
  ModelConfig& model = config.model;
  model.num_nextn_predict_layers = modules;
  model.model_type = model_type;
  if (model_type == "deepseek_v3") test::make_latent(model);
  fill_defaults(model);
  return config;
}

WorkerOptions worker_options(const RunConfig& config, const char* strategy = "flat", const char* combine = "partial") {
  WorkerOptions options;
  options.model = config.model;
  options.exchange.strategy = strategy;
  options.exchange.combine = combine;
  options.with_grad = false;
  return options;
}

// Ragged: prompts of 1 to 30 tokens, greedy and drawn, one with a penalty for tokens that it has already.
std::vector<TextRequest> requests() {
  std::vector<TextRequest> requests;
  const std::string text = test::some_text();
  for (const size_t length : {30, 1, 17, 5}) {
    TextRequest request;
    for (size_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<unsigned char>(text[i + 11 * length]));
    request.sampling = {.temperature = requests.size() == 2 ? 0.8 : 0.0, .seed = length};
    if (requests.size() == 1) request.sampling.repetition_penalty = 1.2;
    requests.push_back(request);
  }
  return requests;
}

struct Outcome {
  std::vector<Tokens> texts;  // on the first rank
  GenerateStatistics statistics;
};

Outcome outcome_of(Worker& worker, const GenerateOptions& options, const std::vector<TextRequest>& requests) {
  Outcome outcome;
  outcome.texts.resize(requests.size());
  outcome.statistics = generate(worker, requests, options, [&](size_t text, std::optional<int32_t> token) {
    if (token) outcome.texts.at(text).push_back(*token);
  });
  return outcome;
}

// Each text alone, without drafts.
std::vector<Tokens> one_by_one(Worker& worker, int64_t max_new) {
  std::vector<Tokens> texts;
  for (const TextRequest& request : requests()) {
    texts.push_back(outcome_of(worker, {.max_new = max_new, .speculate = false}, {request}).texts.front());
  }
  return texts;
}

int64_t sum(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

// What is expected of the share of drafts that stand.
enum class Modules { trained, random, bad };

void expect_shares(const GenerateStatistics& statistics, int64_t modules, Modules kind) {
  ASSERT_EQ(statistics.drafted.size(), static_cast<size_t>(modules));
  const double share = static_cast<double>(statistics.accepted[0]) / static_cast<double>(statistics.drafted[0]);
  if (kind == Modules::trained) {
    EXPECT_GT(share, 0.4);
    EXPECT_LT(share, 1.0) << "no draft was ever wrong";
  }
  if (kind == Modules::bad) {
    EXPECT_LT(share, 0.1);
  }
  for (size_t i = 1; i < statistics.drafted.size(); ++i) {
    EXPECT_LE(statistics.drafted[i], statistics.accepted[i - 1]) << "looked at though the draft before it was wrong";
  }
}

void compare(Worker& worker, int64_t modules, Modules kind, const std::vector<int64_t>& batches) {
  constexpr int64_t kMaxNew = 12;
  const std::vector<Tokens> expected = one_by_one(worker, kMaxNew);
  for (const bool speculate : {false, true}) {
    for (const int64_t batch : batches) {
      SCOPED_TRACE(testing::Message() << "speculate " << speculate << " batch " << batch);
      const Outcome outcome =
          outcome_of(worker, {.max_new = kMaxNew, .batch = batch, .speculate = speculate}, requests());
      EXPECT_EQ(outcome.texts, expected);
      if (speculate) expect_shares(outcome.statistics, modules, kind);
      if (!speculate) {
        EXPECT_EQ(sum(outcome.statistics.drafted), 0);
      }
    }
  }
}

// The modules then draft what they hold for least likely.
void spoil(const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    if (!parameter->name().ends_with("shared_head.norm.weight")) continue;
    for (int64_t i = 0; i < parameter->value.numel(); ++i) parameter->value.data<float>()[i] *= -1.0F;
    ++parameter->version;
  }
}

struct Exchanged {
  const char* strategy;
  const char* combine;
};

struct Case {
  const char* model_type;
  int64_t modules;
};

class Speculation : public testing::TestWithParam<Case> {};

TEST_P(Speculation, ChangesNoTokenOfAModelThatWasTrainedALittle) {
  const auto& [model_type, modules] = GetParam();
  test::on_ranks(
      [&](Communicator& world) {
        const test::RunFolder folder(world);
        const RunConfig config = run_with_modules(folder.path(), model_type, modules);
        test::train(world.duplicate("train"), config, 40, /*save=*/true);
        Worker worker(world.duplicate("generate"), worker_options(config));
        load_checkpoint(latest_checkpoint(std::filesystem::path(config.out) / "checkpoints")->path, worker.store(),
                        nullptr);
        compare(worker, modules, Modules::trained, {1, 3});
        spoil(worker.store());
        compare(worker, modules, Modules::bad, {2});
      },
      {1, 2});
}

TEST_P(Speculation, ChangesNoTokenOfARandomModel) {
  const auto& [model_type, modules] = GetParam();
  test::on_ranks(
      [&](Communicator& world) {
        const test::RunFolder folder(world);
        RunConfig config = run_with_modules(folder.path(), model_type, modules);
        config.model.initializer_range = 0.3;
        for (const auto& [strategy, combine] :
             {Exchanged{"flat", "partial"}, Exchanged{"flat", "slot_order"}, Exchanged{"shared", "partial"},
              Exchanged{"hierarchical", "partial"}, Exchanged{"all_gather", "partial"}}) {
          const bool is_plain = strategy == std::string("flat") && combine == std::string("partial");
          if (!is_plain && (world.size() == 1 || modules > 1)) continue;
          SCOPED_TRACE(testing::Message() << strategy << " " << combine);
          Worker worker(world.duplicate("generate"), worker_options(config, strategy, combine));
          worker.store().initialise(7);
          compare(worker, modules, Modules::random, {3});
        }
      },
      {1, 2});
}

INSTANTIATE_TEST_SUITE_P(Models, Speculation,
                         testing::Values(Case{"deepseek", 1}, Case{"deepseek_v3", 1}, Case{"deepseek_v3", 3}),
                         [](const auto& parameter) {
                           return fmt::format("{}_{}", parameter.param.model_type, parameter.param.modules);
                         });

}  // namespace
}  // namespace cadre::speculation_test
