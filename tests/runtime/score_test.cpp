// SPDX-License-Identifier: Apache-2.0
// A DeepSeek-V3 that an independent program computed in fp64 (tests/golden/v3_mini): logits, hidden states, routing, loss
// and all gradients, on any ranks, with every exchange, with and without overlap. And a model that is trained here, saved
// and read back: the same bits.
#include "runtime/infer/score.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "comm/exchange/exchange.hpp"
#include "comm/transport/local.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/score_comparison.hpp"

namespace cadre::score_test {
namespace {

using test::ScoreTensor;

const std::filesystem::path kGolden = std::filesystem::path(CADRE_TEST_FOLDER) / "golden/v3_mini";

ScoreTokens golden_tokens(const SafetensorsReader& expected) {
  const TensorEntry& entry = *expected.find("tokens");
  ScoreTokens tokens{entry.shape[0], entry.shape[1], {}};
  for (const double id : test::values_of(ScoreTensor{"tokens", DType::i64, entry.shape, expected.bytes(entry)})) {
    tokens.ids.push_back(static_cast<int32_t>(id));
  }
  return tokens;
}

std::vector<ScoreTensor> views_of(const std::vector<ResultTensor>& results) {
  std::vector<ScoreTensor> views;
  for (const ResultTensor& tensor : results) {
    views.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.memory.span()});
  }
  return views;
}

struct Mode {
  const char* schedule;
  int64_t micro_batches;
  bool overlap;
};

void compare_with_golden(Communicator& world, const std::string& strategy, const Mode& mode) {
  SCOPED_TRACE(testing::Message() << strategy << ", " << mode.schedule << (mode.overlap ? "" : " without overlap"));
  const SafetensorsReader expected(kGolden / "expected.safetensors");
  const ScoreTokens tokens = golden_tokens(expected);
  RunConfig config;
  config.model = read_model_config(kGolden);
  config.exchange.strategy = strategy;
  config.parallel.schedule = mode.schedule;
  config.parallel.overlap = mode.overlap;
  config.train.micro_batches = mode.micro_batches;
  config = score_config(config, tokens);
  const ScoringOptions all = {.gradients = true, .routing = true, .hidden = true};
  Communicator own = world.duplicate("worker");
  const WorkerOptions options = score_options(config, own, all);
  Worker worker(std::move(own), options);
  load_checkpoint(kGolden, worker.store(), nullptr);
  const std::vector<ResultTensor> results = score(worker, config, tokens, all);
  if (world.rank() > 0) {
    EXPECT_TRUE(results.empty());
    return;
  }
  const std::vector<ScoreTensor> wanted = test::tensors_of(expected);
  EXPECT_EQ(results.size() + 1, wanted.size());  // the tokens
  for (const std::string& line : test::differences_of(views_of(results), wanted, test::kFp32Tolerance)) {
    ADD_FAILURE() << line;
  }
}

TEST(Score, EqualsTheGoldenCaseOnAnyRanksWithEveryExchange) {
  test::on_ranks([](Communicator& world) {
    for (const std::string_view strategy : kStrategies) {
      for (const Mode& mode : {Mode{"1f1b", 1, true}, Mode{"pair", 2, true}, Mode{"pair", 2, false}}) {
        compare_with_golden(world, std::string(strategy), mode);
      }
    }
  });
}

// Biases of selection that are turned round choose other experts, and weigh none. With the choices of the golden case the
// results are its own again, gradients too. In bf16 the choices stay those of fp64.
TEST(Score, ReplaysTheChoicesOfTheGoldenCase) {
  test::on_ranks([](Communicator& world) {
    const std::filesystem::path path = kGolden / "expected.safetensors";
    const SafetensorsReader expected(path);
    const ScoreTokens tokens = golden_tokens(expected);
    RunConfig config;
    config.model = read_model_config(kGolden);
    config.train.micro_batches = 2;
    config = score_config(config, tokens);
    const RecordedRouting recorded(path, config.model, tokens.num_sequences * tokens.length);
    for (const auto& [precision, turned] :
         {std::pair("fp32", true), std::pair("bf16", true), std::pair("fp32", false)}) {
      config.compute.precision = precision;
      ScoringOptions all = {.gradients = true, .routing = true, .hidden = true, .replay = &recorded};
      Communicator own = world.duplicate("worker");
      const WorkerOptions options = score_options(config, own, all);
      Worker worker(std::move(own), options);
      load_checkpoint(kGolden, worker.store(), nullptr);
      for (Parameter* parameter : worker.store().parameters()) {
        if (!turned || !parameter->name().ends_with("e_score_correction_bias")) continue;
        for (int64_t e = 0; e < parameter->value.numel(); ++e) parameter->value.data<float>()[e] *= -10.0F;
        ++parameter->version;
      }
      ReplayCounts replayed;
      const std::vector<ResultTensor> results = score(worker, config, tokens, all, &replayed);
      if (turned) {
        EXPECT_GT(replayed.differing, replayed.choices / 10);
      } else {
        EXPECT_EQ(replayed.differing, 0);
      }
      if (world.rank() > 0) continue;
      const bool exact = std::string_view(precision) == "fp32";
      int64_t choices = 0;
      for (const ScoreTensor& wanted : test::tensors_of(expected)) {
        if (wanted.name == "tokens") continue;
        const bool is_choice = wanted.name.ends_with("topk_indices");
        if (is_choice) choices += wanted.shape[0] * wanted.shape[1];
        if (!exact && !is_choice) continue;
        const auto found = std::ranges::find(results, wanted.name, &ResultTensor::name);
        ASSERT_NE(found, results.end()) << wanted.name;
        const ScoreTensor view = {found->name, found->dtype, found->shape, found->memory.span()};
        for (const std::string& line : test::differences_of({view}, {wanted}, test::kFp32Tolerance)) {
          ADD_FAILURE() << precision << ": " << line;
        }
      }
      EXPECT_EQ(replayed.choices, choices);
    }
  });
}

TEST(Score, RefusesARecordOfSomethingElse) {
  const SafetensorsReader expected(kGolden / "expected.safetensors");
  const ModelConfig model = read_model_config(kGolden);
  const int64_t num_tokens = expected.find("tokens")->shape[0] * expected.find("tokens")->shape[1];
  const auto refusal = [](const std::filesystem::path& path, const ModelConfig& of, int64_t count) {
    return test::message_of([&] { RecordedRouting(path, of, count); });
  };
  EXPECT_NE(refusal(kGolden / "model.safetensors", model, num_tokens).find("has no tensor layers."), std::string::npos);
  EXPECT_NE(refusal(kGolden / "expected.safetensors", model, num_tokens - 1).find("allowed: I64 ["), std::string::npos);
  ModelConfig fewer = model;
  fewer.n_routed_experts = 2;
  EXPECT_NE(refusal(kGolden / "expected.safetensors", fewer, num_tokens).find("allowed: each of [0, 2) once"),
            std::string::npos);
  EXPECT_EQ(refusal(kGolden / "expected.safetensors", model, num_tokens), "no error");
}

// Latent attention, groups, an MTP module; trained for three steps.
RunConfig small_run(const std::filesystem::path& folder) {
  RunConfig config;
  config.out = (folder / "run").string();
  config.model.model_type = "deepseek_v3";
  config.model.vocab_size = 256;
  config.model.hidden_size = 24;
  config.model.num_hidden_layers = 3;
  config.model.num_attention_heads = 2;
  config.model.q_lora_rank = 10;
  config.model.kv_lora_rank = 9;
  config.model.qk_nope_head_dim = 5;
  config.model.qk_rope_head_dim = 6;
  config.model.v_head_dim = 7;
  config.model.intermediate_size = 20;
  config.model.moe_intermediate_size = 12;
  config.model.n_routed_experts = 10;
  config.model.num_experts_per_tok = 3;
  config.model.n_shared_experts = 1;
  config.model.first_k_dense_replace = 1;
  config.model.scoring_func = ScoreFunction::sigmoid;
  config.model.topk_method = TopkMethod::noaux_tc;
  config.model.n_group = 5;
  config.model.topk_group = 3;
  config.model.norm_topk_prob = true;
  config.model.num_nextn_predict_layers = 1;
  config.data.path = (folder / "text").string();
  config.data.sequence_length = 16;
  config.train.steps = 3;
  config.train.batch = 8;
  config.train.learning_rate = 1e-2;
  config.train.eval_batches = 1;
  config.exchange.combine = "slot_order";
  fill_defaults(config.model);
  return config;
}

// The logits of thread ranks that `make` gives a worker each.
std::vector<float> logits_on(int num_ranks, const std::function<std::vector<ResultTensor>(Communicator)>& body) {
  std::vector<float> logits;
  run_local_ranks(num_ranks, [&](std::unique_ptr<Transport> transport) {
    for (const ResultTensor& tensor : body(Communicator(std::move(transport), "world"))) {
      if (tensor.name == "logits") {
        logits.assign(tensor.memory.as<float>(), tensor.memory.as<float>() + tensor.memory.bytes() / sizeof(float));
      }
    }
  });
  return logits;
}

// The trainer's bits on its number of ranks; on others other rows are multiplied together, which BLAS may round otherwise.
TEST(Score, ReadsTheBitsOfTheTrainer) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "its ranks are threads";
  const test::TemporaryDirectory folder;
  std::string text;
  for (int i = 0; i < 2000; ++i) text += static_cast<char>('a' + i * i % 23);
  test::write_file(folder / "text", text);
  const RunConfig run = small_run(folder.path());
  ScoreTokens tokens{5, 16, {}};
  for (int i = 0; i < 5 * 16; ++i) tokens.ids.push_back('a' + i * 7 % 23);
  const RunConfig config = score_config(run, tokens);

  const std::vector<float> trained = logits_on(4, [&](Communicator world) {
    Trainer trainer(std::move(world), run);
    trainer.run();
    return score(trainer.worker(), config, tokens, {});
  });
  ASSERT_EQ(trained.size(), size_t{5 * 16 * 256});
  for (const int num_ranks : {1, 3, 4}) {
    const std::vector<float> read = logits_on(num_ranks, [&](Communicator world) {
      const WorkerOptions options = score_options(config, world, {});
      Worker worker(std::move(world), options);
      load_checkpoint(folder / "run/checkpoints/latest", worker.store(), nullptr);
      return score(worker, config, tokens, {});
    });
    ASSERT_EQ(read.size(), trained.size());
    if (num_ranks == 4) {
      EXPECT_EQ(std::memcmp(read.data(), trained.data(), trained.size() * sizeof(float)), 0);
    }
    for (size_t i = 0; i < read.size(); ++i) {
      ASSERT_NEAR(read[i], trained[i], 1e-5) << num_ranks << " ranks";  // some hundred roundings of numbers below 1
    }
  }
}

// CODING from the x on, whose experts are 0, 1 and 2; the other sequence has no task.
TEST(Score, TellsTheRouterTheTaskOfEachToken) {
  RunConfig config = small_run("unused");
  config.model.n_group = config.model.topk_group = 1;
  config.model.router.bias.expert_task = {1, 1, 1, 0, 0, 0, 0, 0, 0, 0};
  config.model.router.bias.task = 10.0;
  config.task.coding = "x";
  const ScoreTokens tokens{2, 4, {'a', ' ', 'x', ' ', 'a', ' ', 'b', ' '}};
  const auto coding_tokens = [&](bool recognise, const ScoringOptions& options) {
    config.task.recognise = recognise;
    const RunConfig of_score = score_config(config, tokens);
    std::vector<bool> are_coding;
    test::on_one_rank([&](Communicator world) {
      const WorkerOptions worker_options = score_options(of_score, world, options);
      Worker worker(std::move(world), worker_options);
      worker.store().initialise(5);
      const std::vector<ResultTensor> results = score(worker, of_score, tokens, options);
      const auto ids = std::ranges::find(results, "layers.1.topk_indices", &ResultTensor::name);
      ASSERT_NE(ids, results.end());
      const auto* id = ids->memory.as<int64_t>();
      for (int token = 0; token < 8; ++token) {
        are_coding.push_back(
            std::all_of(id + 3 * token, id + 3 * token + 3, [](int64_t expert) { return expert < 3; }));
      }
    });
    return are_coding;
  };
  const std::vector<bool> none(8, false);
  for (const bool gradients : {false, true}) {
    EXPECT_EQ(coding_tokens(false, {.gradients = gradients, .routing = true}), none);
    EXPECT_EQ(coding_tokens(true, {.gradients = gradients, .routing = true}),
              (std::vector<bool>{false, false, true, true, false, false, false, false}));
    EXPECT_EQ(coding_tokens(false, {.gradients = gradients, .routing = true, .task = 1}), std::vector<bool>(8, true));
  }
}

}  // namespace
}  // namespace cadre::score_test
