// SPDX-License-Identifier: Apache-2.0
// Models of many configurations against a second, independent implementation in fp64: hidden states, routing, logits,
// losses, those of further tokens too; and the absorbed decode form against whole sequences.
#include <gtest/gtest.h>

#include "comm/base/random.hpp"
#include "comm/progress/engine.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/deepseek_reference.hpp"
#include "tests/support/fast_back_ends.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::deepseek_test {
namespace {

using test::DeepSeekReference;

constexpr int64_t kSequences = 2;
constexpr int64_t kLength = 9;
constexpr int64_t kTokens = kSequences * kLength;
constexpr int64_t kPrefill = 6;  // of them, the rest is decoded one by one

struct Case {
  const char* name;
  ModelConfig config;
};

ModelConfig v3(const std::function<void(ModelConfig&)>& change = {}) {
  ModelConfig c;
  c.model_type = "deepseek_v3";
  c.vocab_size = 19;
  c.hidden_size = 14;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 3;
  c.max_position_embeddings = 16;
  c.initializer_range = 0.35;
  c.rms_norm_eps = 1e-5;
  c.q_lora_rank = 6;
  c.kv_lora_rank = 5;
  c.qk_nope_head_dim = 7;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 3;
  c.intermediate_size = 11;
  c.moe_intermediate_size = 5;
  c.n_routed_experts = 12;
  c.num_experts_per_tok = 3;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  c.scoring_func = ScoreFunction::sigmoid;
  c.topk_method = TopkMethod::noaux_tc;
  c.n_group = 4;
  c.topk_group = 2;
  c.norm_topk_prob = true;
  c.routed_scaling_factor = 2.5;
  if (change) change(c);
  fill_defaults(c);
  check(c);
  return c;
}

void softmax_without_groups(ModelConfig& c) {
  c.model_type = "deepseek_v2";
  c.scoring_func = ScoreFunction::softmax;
  c.topk_method = TopkMethod::greedy;
  c.n_group = c.topk_group = 1;
  c.norm_topk_prob = false;
  c.routed_scaling_factor = 1.0;
}

std::vector<Case> cases() {
  return {
      {"v3", v3()},
      {"yarn", v3([](ModelConfig& c) {
         c.qk_rope_head_dim = 8;
         c.rope_scaling = {"yarn", 40.0, 8.0, 0.5, 1.0, 1.0, 12};
         c.rope_theta = 100.0;
       })},
      {"yarn with two scales", v3([](ModelConfig& c) {
         c.qk_rope_head_dim = 6;
         c.rope_scaling = {"yarn", 4.0, 32.0, 1.0, 0.707, 0.3, 64};
         c.q_lora_rank = 0;
       })},
      {"v2 lite", v3([](ModelConfig& c) {
         softmax_without_groups(c);
         c.q_lora_rank = 0;
         c.n_shared_experts = 2;
       })},
      {"v2", v3([](ModelConfig& c) {
         softmax_without_groups(c);
         c.topk_method = TopkMethod::group_limited_greedy;
         c.n_group = 3;
         c.topk_group = 2;
         c.routed_scaling_factor = 16.0;
         c.initializer_range = 0.2;
       })},
      {"softmax, renormalised, with a bias", v3([](ModelConfig& c) {
         c.scoring_func = ScoreFunction::softmax;
         c.n_group = c.topk_group = 1;
       })},
      {"tied, wide values, no shared experts", v3([](ModelConfig& c) {
         c.tie_word_embeddings = true;
         c.v_head_dim = 13;
         c.qk_nope_head_dim = 1;
         c.qk_rope_head_dim = 10;
         c.n_shared_experts = 0;
       })},
      {"every second layer, one head, one expert", v3([](ModelConfig& c) {
         c.num_hidden_layers = 4;
         c.moe_layer_freq = 2;
         c.num_attention_heads = 1;
         c.num_experts_per_tok = 1;
         c.n_group = 12;
         c.topk_group = 5;
       })},
      {"dense", v3([](ModelConfig& c) { c.n_routed_experts = 0; })},
      {"two MTP modules", v3([](ModelConfig& c) {
         c.num_nextn_predict_layers = 2;
         c.n_shared_experts = 3;
       })},
      {"tied with an MTP module", v3([](ModelConfig& c) {
         c.num_nextn_predict_layers = 1;
         c.tie_word_embeddings = true;
         c.first_k_dense_replace = 0;
       })},
  };
}

// Makes also what starts at zeros or ones random: gains of norms around 1, selection biases around -0.4, so that some
// biased scores are negative.
void fill(const ParameterStore& store) {
  for (const Parameter* parameter : store.parameters()) {
    const Random random(3, "fill", hash_name(parameter->name()));
    const bool is_bias = parameter->placement == Placement::buffer;
    for (int64_t i = 0; i < parameter->value.numel(); ++i) {
      const double normal = random.normal(static_cast<uint64_t>(i));
      const double value =
          parameter->value.num_dims() == 2 ? parameter->init.scale * normal : (is_bias ? -0.4 : 1.0) + 0.3 * normal;
      test::put_element(parameter->value, i, value);
    }
  }
}

DeepSeekReference::Weights weights_of(const ParameterStore& store) {
  DeepSeekReference::Weights weights;
  for (const Parameter* parameter : store.parameters()) {
    for (const ParameterPart& part : parameter->parts) {
      weights[part.name] = test::values_of(parameter->value.rows(part.first_row, part.num_rows));
    }
  }
  return weights;
}

int32_t token(int64_t sequence, int64_t position, const ModelConfig& config) {
  return static_cast<int32_t>((7 * sequence + 5 * position * position + 3) % config.vocab_size);
}

// The model on one rank.
class Run {
 public:
  Run(const ModelConfig& config, Communicator& world, std::unique_ptr<Kernels> kernels, DType dtype)
      : lane_(0, world.duplicate("expert"), world.duplicate("data")),
        model_(config, make_expert_map(config, 1), 0),
        exchange_(make_exchange("flat", {lane_.expert_group(), Topology::uniform(1, 1)})),
        kernels_(std::move(kernels)),
        ctx_{{*kernels_, arena_, dtype}, lane_, *exchange_, CombineMode::partial, {}, 1.0 / kTokens} {
    store_.add_all(model_);
    store_.allocate(dtype, /*with_grad=*/false, /*dry_run=*/false);
    fill(store_);
  }

  Stage::Output forward() {
    Stage::Output output;
    Task<void> task = pass(output);
    Engine().run(lane_, task);
    return output;
  }

  // Logits of the last token of each sequence, kPrefill tokens at once and then one by one.
  std::vector<double> decode() {
    std::vector<KvCache> caches = model_.make_caches(ctx_, kSequences, kLength);
    std::vector<double> logits;
    for (int64_t first = 0; first < kLength; first += first == 0 ? kPrefill : 1) {
      Task<void> task = next(first, first == 0 ? kPrefill : 1, caches, logits);
      Engine().run(lane_, task);
    }
    return logits;
  }

  // Logits of the MTP modules with their caches: the first tokens at once and then one by one. By module, the
  // rows of each sequence as in training.
  std::vector<std::vector<double>> decode_mtp() {
    std::vector<KvCache> caches = model_.make_caches(ctx_, kSequences, kLength);
    std::vector<std::vector<double>> logits;
    Task<void> task = mtp(caches, logits);
    Engine().run(lane_, task);
    return logits;
  }

  const Stage& stage() { return model_.stage(0); }
  const Stage::Saved& saved() const { return saved_; }
  const ParameterStore& store() const { return store_; }

 private:
  Tensor ints(int64_t first, int64_t length, const std::function<int32_t(int64_t, int64_t)>& value) {
    const Tensor tensor = arena_.take("tokens", DType::i32, {kSequences * length});
    for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data<int32_t>()[i] = value(i / length, first + i % length);
    return tensor;
  }

  Sequences sequences(int64_t first, int64_t length) {
    return {kSequences, length,
            ints(first, length, [](int64_t, int64_t position) { return static_cast<int32_t>(position); })};
  }

  Task<void> pass(Stage::Output& output) {
    const ModelConfig& config = model_.config();
    const Tensor ids = ints(0, kLength, [&](int64_t s, int64_t p) { return token(s, p, config); });
    const Tensor targets =
        ints(0, kLength, [&](int64_t s, int64_t p) { return p + 1 < kLength ? token(s, p + 1, config) : -1; });
    Task<Stage::Output> task = stage().forward(ctx_, {ids, targets, sequences(0, kLength)}, Tensor(), saved_);
    output = co_await task;
  }

  Task<void> next(int64_t first, int64_t length, std::vector<KvCache>& caches, std::vector<double>& logits) {
    const ModelConfig& config = model_.config();
    const Tensor ids = ints(first, length, [&](int64_t s, int64_t p) { return token(s, p, config); });
    ctx_.training = false;
    Task<Tensor> task = model_.decode(ctx_, ids, spans(first, length), caches);
    const Tensor rows = co_await task;
    logits.clear();
    for (int64_t s = 1; s <= kSequences; ++s) {
      const std::vector<double> last = test::values_of(model_.last_stage().logits(ctx_, rows.rows(s * length - 1, 1)));
      logits.insert(logits.end(), last.begin(), last.end());
    }
  }

  Task<void> mtp(std::vector<KvCache>& caches, std::vector<std::vector<double>>& logits) {
    const ModelConfig& config = model_.config();
    ctx_.training = false;
    const Tensor ids = ints(0, kLength, [&](int64_t s, int64_t p) { return token(s, p, config); });
    Task<Tensor> task = model_.decode(ctx_, ids, spans(0, kLength), caches);
    Tensor h = co_await task;
    for (int module = 0; module < stage().num_mtp(); ++module) {
      const int64_t length = kLength - 1 - module;
      KvCache& cache = caches[static_cast<size_t>(config.num_hidden_layers + module)];
      Tensor next_h = arena_.take("rows", ctx_.dtype, {kSequences * length, config.hidden_size});
      std::vector<std::vector<double>> by_sequence(kSequences);
      for (int64_t first = 0; first < length; first += first == 0 ? kPrefill : 1) {
        const int64_t count = first == 0 ? kPrefill : 1;
        const Tensor next = ints(first, count, [&](int64_t s, int64_t p) { return token(s, p + module + 1, config); });
        const Tensor index =
            ints(first, count, [&](int64_t s, int64_t p) { return static_cast<int32_t>(s * (length + 1) + p); });
        const Tensor rows = arena_.take("rows", ctx_.dtype, {kSequences * count, config.hidden_size});
        kernels_->gather_rows(h, index, Tensor(), rows);
        Task<Tensor> decode = stage().decode_mtp(ctx_, module, next, rows, spans(first, count), cache);
        const Tensor y = co_await decode;
        const Tensor said = stage().mtp_logits(ctx_, module, y);
        for (int64_t s = 0; s < kSequences; ++s) {
          const std::vector<double> values = test::values_of(said.rows(s * count, count));
          std::vector<double>& all = by_sequence[static_cast<size_t>(s)];
          all.insert(all.end(), values.begin(), values.end());
          for (int64_t i = 0; i < count * config.hidden_size; ++i) {
            const Tensor to = next_h.rows(s * length + first, count);
            test::put_element(to, i, test::values_of(y.rows(s * count, count))[static_cast<size_t>(i)]);
          }
        }
      }
      logits.push_back(by_sequence.front());
      logits.back().insert(logits.back().end(), by_sequence.back().begin(), by_sequence.back().end());
      h = next_h;
    }
  }

  NextTokens spans(int64_t first, int64_t count) {
    return next_tokens(arena_, std::vector<NextTokens::Span>(kSequences, {first, count}));
  }

  Lane lane_;
  Model model_;
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<Kernels> kernels_;
  Arena arena_{Arena::Mode::real, /*poison=*/true};
  LaneContext ctx_;
  ParameterStore store_;
  Stage::Saved saved_;
};

void expect_rows(const Tensor& actual, int64_t sequence, const DeepSeekReference::Rows& expected, double tolerance) {
  std::vector<double> flat;
  for (const DeepSeekReference::Row& row : expected) flat.insert(flat.end(), row.begin(), row.end());
  test::expect_near(test::values_of(actual.rows(sequence * kLength, kLength)), flat, tolerance);
}

void expect_routing(const Router::Saved& router, int64_t sequence, const DeepSeekReference::Routing& expected,
                    double tolerance) {
  const auto length = static_cast<int64_t>(expected.ids.size());
  for (int64_t t = 0; t < length; ++t) {
    const std::vector<double> ids = test::values_of(router.ids.rows(sequence * length + t, 1));
    EXPECT_EQ(ids, std::vector<double>(expected.ids[t].begin(), expected.ids[t].end())) << "token " << t;
    test::expect_near(test::values_of(router.weights.rows(sequence * length + t, 1)), expected.weights[t], tolerance);
  }
}

void compare(const ModelConfig& config, std::unique_ptr<Kernels> kernels, DType dtype, double tolerance) {
  test::on_one_rank([&](Communicator alone) {
    Run run(config, alone, std::move(kernels), dtype);
    DeepSeekReference reference(config, weights_of(run.store()));
    const Stage::Output output = run.forward();
    double loss_sum = 0.0;
    double mtp_loss_sum = 0.0;
    std::vector<double> last_logits;
    for (int64_t s = 0; s < kSequences; ++s) {
      SCOPED_TRACE(testing::Message() << "sequence " << s);
      std::vector<int> ids;
      for (int64_t p = 0; p < kLength; ++p) ids.push_back(token(s, p, config));
      const DeepSeekReference::Output expected = reference.forward(ids);
      for (int layer = 0; layer + 1 < config.num_hidden_layers; ++layer) {
        SCOPED_TRACE(testing::Message() << "layer " << layer);
        expect_rows(run.saved().blocks[static_cast<size_t>(layer) + 1].attention_norm.x, s, expected.hidden.at(layer),
                    tolerance);
      }
      for (const auto& [layer, routing] : expected.routing) {
        SCOPED_TRACE(testing::Message() << "router of layer " << layer);
        expect_routing(run.stage().saved_of(run.saved(), layer)->moe.router, s, routing, tolerance);
      }
      expect_rows(run.saved().head.logits, s, expected.logits, tolerance);
      last_logits.insert(last_logits.end(), expected.logits.back().begin(), expected.logits.back().end());
      loss_sum += expected.loss_sum;
      for (const double loss : expected.mtp_loss_sums) {
        mtp_loss_sum += loss / static_cast<double>(config.num_nextn_predict_layers);
      }
    }
    EXPECT_NEAR(output.loss_sum, loss_sum, kTokens * tolerance);
    EXPECT_NEAR(output.mtp_loss_sum, mtp_loss_sum, kTokens * tolerance);
    EXPECT_EQ(mtp_loss_sum > 0.0, config.num_nextn_predict_layers > 0);
    test::expect_near(run.decode(), last_logits, tolerance);
    const std::vector<std::vector<double>> modules = run.decode_mtp();
    ASSERT_EQ(modules.size(), static_cast<size_t>(config.num_nextn_predict_layers));
    for (size_t module = 0; module < modules.size(); ++module) {
      SCOPED_TRACE(testing::Message() << "module " << module);
      test::expect_near(modules[module], test::values_of(run.saved().mtp[module].head.logits), tolerance);
    }
  });
}

class DeepSeek : public testing::TestWithParam<Case> {};

// The same sums in another order, of values up to 100: 1e-16 a rounding, some thousand roundings.
TEST_P(DeepSeek, EqualsThePlainLoopsInFp64) { compare(GetParam().config, make_reference_kernels(), DType::f64, 1e-10); }

// Five decimal digits of a number through up to four layers; how much of the sixth is left depends on the order in which a
// CPU adds.
TEST_P(DeepSeek, EqualsThePlainLoopsInFp32) {
  compare(GetParam().config, make_cpu_kernels(Precision::fp32), DType::f32, 1e-4);
}
TEST_P(DeepSeek, EqualsThePlainLoopsOnTheTwinOfAGpu) {
  compare(GetParam().config, test::make_twin_with_copies(), DType::f32, 2e-5);
}
TEST_P(DeepSeek, EqualsThePlainLoopsOnADevice) {
  auto kernels = test::make_on_cuda();
  CADRE_SKIP_WITHOUT(kernels);
  compare(GetParam().config, std::move(kernels), DType::f32, 2e-5);
}

INSTANTIATE_TEST_SUITE_P(Configurations, DeepSeek, testing::ValuesIn(cases()), [](const auto& parameter) {
  std::string name = parameter.param.name;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ' ' || c == ','; }, '_');
  return name;
});

}  // namespace
}  // namespace cadre::deepseek_test
