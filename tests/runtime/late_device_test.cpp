// SPDX-License-Identifier: Apache-2.0
// Workers whose back end does later what it is called for, as a device does (tests/support/gpu_twin_machine.hpp): training
// with lanes that overlap and with a pipeline, checkpoints, evaluation, scoring and generation read nothing too early.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/infer/decoder.hpp"
#include "runtime/infer/score.hpp"
#include "tests/support/following_transport.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/score_comparison.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::late_device_test {
namespace {

using test::RunFolder;
using test::ScoreTensor;
using test::small_run;

const std::filesystem::path kGolden = std::filesystem::path(CADRE_TEST_FOLDER) / "golden/v3_mini";

std::unique_ptr<Kernels> late() { return test::make_gpu_twin(test::TwinOrder::ascending, test::TwinMemory::own); }

// The ranks of `world`, which pass on what lies on the device, and a transport that goes by its time as NCCL does.
Communicator staged(const Communicator& world) { return {test::make_twin_transport(world.transport()), "staged"}; }
Communicator following(const Communicator& world) {
  return {test::make_following_transport(world.transport()), "following"};
}

// Sums in another order, and AdamW, which divides by the size of a gradient however small.
void expect_close(const std::vector<double>& expected, const std::vector<double>& actual) {
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(actual[i], expected[i], 1e-4 * expected[i]) << "number " << i;
}

std::vector<double> train(Communicator world, const RunConfig& config, int steps, const KernelMaker& kernels) {
  Trainer trainer(std::move(world), config, nullptr, kernels);
  std::vector<double> numbers;
  for (int i = 0; i < steps; ++i) {
    const StepRecord record = trainer.step();
    for (const double number : {record.global.loss, record.global.mtp_loss, record.grad_norm}) {
      numbers.push_back(number);
    }
  }
  numbers.push_back(trainer.evaluate());
  if (steps > 0) trainer.save();
  return numbers;
}

// In one stage with a tied head, and in a pipeline whose lanes overlap.
TEST(LateDevice, TrainsAsTheCpuDoes) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.model.num_hidden_layers = 8;
        config.model.num_nextn_predict_layers = 1;
        config.model.n_group = 5;
        config.model.topk_group = 3;
        config.train.batch = 8;
        config.train.micro_batches = 8;
        config.parallel.pipeline = std::min(world.size(), 2);
        config.parallel.schedule = world.size() == 1 ? "pair" : "dualpipe";
        config.model.tie_word_embeddings = true;
        const std::vector<double> expected = train(world.duplicate("cpu"), config, 3, {});
        config.out += ".late";
        const std::vector<double> actual = train(staged(world), config, 3, late);
        expect_close(expected, actual);
        expect_close(expected, train(following(world), config, 3, late));

        // What was saved is what was trained.
        const RunConfig again = test::resumed(config);
        expect_close({actual.back()}, train(world.duplicate("again"), again, 0, {}));
        expect_close({actual.back()}, train(staged(world), again, 0, late));
      },
      {1, 2, 4});
}

// What of routers and experts is the host's work: between two kernels, or behind one.
TEST(LateDevice, RoutesAsTheCpuDoes) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const auto expect_same = [&](const char* what, const std::function<void(RunConfig&)>& change) {
          SCOPED_TRACE(what);
          RunConfig config = small_run(folder.path());
          change(config);
          const std::vector<double> expected = train(world.duplicate("cpu"), config, 2, {});
          expect_close(expected, train(staged(world), config, 2, late));
          expect_close(expected, train(following(world), config, 2, late));
        };
        expect_same("noise and jitter", [](RunConfig& config) {
          config.model.router.scorer.noise = true;
          config.model.router.scorer.jitter = 0.1;
          config.model.router.scorer.hidden_sizes = {12};
          config.model.router.losses.load = 0.01;
          config.model.router.losses.importance = 0.01;
        });
        expect_same("two levels, capacity, a mean of shared experts", [](RunConfig& config) {
          config.model.scoring_func = ScoreFunction::softmax;
          config.model.n_group = 5;
          config.model.topk_group = 5;
          config.model.router.scorer.two_level = true;
          config.model.router.capacity.factor = 1.0;
          config.model.router.losses.z = 0.01;
          config.model.shared_expert_mean = true;
          config.model.n_shared_experts = 2;
        });
        expect_same("experts that are mixtures, a loss by sequence", [](RunConfig& config) {
          config.model.expert_kinds = ExpertKinds::mixture;
          config.model.router.losses.by_sequence = true;
        });
        expect_same("losses of V2, and by sequence", [](RunConfig& config) {
          config.model.router.losses.by_sequence = true;
          config.model.router.losses.expert = 0.02;
          config.model.router.losses.device = 0.03;
          config.model.router.losses.kl = 0.01;
          config.model.router.losses.devices = 2;
        });
        expect_same("rows gathered by all ranks, rounded on their way", [](RunConfig& config) {
          config.exchange.strategy = "all_gather";
          config.exchange.dispatch_format = "fp8";
          config.exchange.combine_format = "bf16";
        });
        expect_same("results slot by slot", [](RunConfig& config) { config.exchange.combine = "slot_order"; });
        expect_same("experts with replicas, copies on a partner", [](RunConfig& config) {
          config.parallel.redundant_experts = 2;
          config.checkpoint.partner_copies = 1;
        });
        expect_same("experts that are projections", [](RunConfig& config) {
          config.model.expert_kinds = ExpertKinds::projections;
          config.model.n_routed_experts = 12;
          config.model.num_experts_per_tok = 3;
        });
        expect_same("outputs of experts that differ",
                    [](RunConfig& config) { config.model.router.losses.diversity = 0.01; });
      },
      {1, 2});
}

std::vector<ScoreTensor> views_of(const std::vector<ResultTensor>& results) {
  std::vector<ScoreTensor> views;
  for (const ResultTensor& tensor : results) {
    views.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.memory.span()});
  }
  return views;
}

// Logits, hidden states, routing and gradients of a case that an independent program computed.
TEST(LateDevice, ScoresTheGoldenCase) {
  test::on_ranks(
      [](Communicator& world) {
        const SafetensorsReader golden(kGolden / "expected.safetensors");
        const TensorEntry& entry = *golden.find("tokens");
        ScoreTokens tokens{entry.shape[0], entry.shape[1], {}};
        for (const double id : test::values_of(ScoreTensor{"tokens", DType::i64, entry.shape, golden.bytes(entry)})) {
          tokens.ids.push_back(static_cast<int32_t>(id));
        }
        for (const bool gradients : {true, false}) {
          RunConfig config;
          config.model = read_model_config(kGolden);
          config.parallel.schedule = "pair";
          config.train.micro_batches = 2;
          config = score_config(config, tokens);
          const ScoringOptions all = {.gradients = gradients, .routing = true, .hidden = true};
          Communicator own = staged(world);
          WorkerOptions options = score_options(config, own, all);
          options.make_kernels = late;
          Worker worker(std::move(own), options);
          load_checkpoint(kGolden, worker.store(), nullptr);
          const std::vector<ResultTensor> results = score(worker, config, tokens, all);
          if (world.rank() > 0) continue;
          std::vector<ScoreTensor> wanted = test::tensors_of(golden);
          if (!gradients)
            std::erase_if(wanted, [](const ScoreTensor& tensor) { return tensor.name.starts_with("grad."); });
          EXPECT_EQ(results.size() + 1, wanted.size());  // the tokens
          for (const std::string& line : test::differences_of(views_of(results), wanted, test::kFp32Tolerance)) {
            ADD_FAILURE() << line;
          }
        }
      },
      {1, 2});
}

constexpr int64_t kVocabulary = 50;

WorkerOptions small_decoder(const KernelMaker& kernels) {
  WorkerOptions options;
  ModelConfig& model = options.model;
  model.model_type = "deepseek_v3";
  model.vocab_size = kVocabulary;
  model.hidden_size = 24;
  model.num_hidden_layers = 2;
  model.max_position_embeddings = 40;
  model.initializer_range = 0.2;
  model.num_attention_heads = 2;
  model.intermediate_size = 30;
  model.n_routed_experts = 6;
  model.num_experts_per_tok = 2;
  model.n_shared_experts = 1;
  model.moe_intermediate_size = 16;
  model.first_k_dense_replace = 1;
  model.num_nextn_predict_layers = 2;
  model.q_lora_rank = 12;
  model.kv_lora_rank = 10;
  model.qk_nope_head_dim = 6;
  model.qk_rope_head_dim = 4;
  model.v_head_dim = 5;
  fill_defaults(model);
  options.with_grad = false;
  options.make_kernels = kernels;
  return options;
}

// Logits of two texts that are read in pieces, and of what modules draft behind them, experts from a cache.
std::vector<double> decode(Communicator world, const KernelMaker& kernels) {
  Worker worker(std::move(world), small_decoder(kernels));
  worker.store().initialise(3);
  ExpertCache cache(size_t{1} << 20);
  Decoder decoder(worker, 2, 40, &cache);
  const std::vector<int32_t> texts[] = {{3, 1, 4, 1, 5, 9, 2, 6, 5, 3}, {2, 7, 1, 8, 2, 8, 1, 8, 2, 8}};
  std::vector<double> numbers;
  for (int64_t first = 0; first < 9; first += 3) {
    std::vector<Reading> readings;
    std::vector<std::span<const int32_t>> known;
    for (const auto& text : texts) {
      readings.push_back(
          {.first = first, .tokens = {text.begin() + first, text.begin() + first + 3}, .num_logits = 2, .tasks = {}});
      known.emplace_back(text.begin(), text.begin() + first + 4);
    }
    const Tensor logits = decoder.read(readings);
    numbers.insert(numbers.end(), logits.data<float>(), logits.data<float>() + logits.numel());
    decoder.draft(known, [&](size_t, std::span<const float> drafted, int64_t) {
      numbers.insert(numbers.end(), drafted.begin(), drafted.end());
      return static_cast<int32_t>(std::ranges::max_element(drafted) - drafted.begin());
    });
  }
  return numbers;
}

TEST(LateDevice, DecodesAsTheCpuDoes) {
  test::on_ranks(
      [](Communicator& world) {
        const std::vector<double> expected = decode(world.duplicate("cpu"), {});
        const std::vector<double> actual = decode(staged(world), late);
        ASSERT_EQ(expected.size(), actual.size());
        ASSERT_GT(expected.size(), size_t{3 * 2 * 2 * kVocabulary});
        for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-4) << "number " << i;
      },
      {1, 2});
}

}  // namespace
}  // namespace cadre::late_device_test
