// SPDX-License-Identifier: Apache-2.0
// The whole model: every gradient against central differences in fp64.
#include "layers/model/model.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "comm/progress/engine.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/gradient_check.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::model_test {
namespace {

constexpr int64_t kSequences = 2;
constexpr int64_t kLength = 5;
constexpr int64_t kTokens = kSequences * kLength;

ModelConfig small_config(const char* norm, const char* activation) {
  ModelConfig config;
  config.vocab_size = 11;
  config.hidden_size = 8;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.max_position_embeddings = 16;
  config.initializer_range = 0.4;
  config.norm = norm;
  config.hidden_act = activation;
  config.intermediate_size = 6;
  config.moe_intermediate_size = 4;
  config.n_routed_experts = 4;
  config.num_experts_per_tok = 2;
  config.n_shared_experts = 1;
  config.first_k_dense_replace = 1;
  config.norm_topk_prob = true;
  config.aux_loss_alpha = 0.2;
  check(config);
  return config;
}

// A model on one rank whose loss is (mean of the token losses) + balance losses + weighted losses of further tokens.
class ModelRun {
 public:
  ModelRun(const ModelConfig& config, Communicator& world)
      : lane_(0, world.duplicate("expert"), world.duplicate("data")),
        model_(config, make_expert_map(config, 1), 0),
        exchange_(make_exchange("flat", {lane_.expert_group(), Topology::uniform(1, world.size())})),
        kernels_(make_reference_kernels()),
        ctx_{{*kernels_, arena_, DType::f64}, lane_, *exchange_, CombineMode::partial, {}, 1.0 / kTokens} {
    ctx_.tokens.sequence_length = kLength;
    store_.add_all(model_);
    store_.allocate(DType::f64, /*with_grad=*/true, /*dry_run=*/false);
    store_.initialise(5);
    for (int64_t t = 0; t < kTokens; ++t) {
      ids_.push_back(static_cast<int32_t>(3 * t % 11));
      targets_.push_back(t == 3 ? -1 : static_cast<int32_t>(5 * t % 11));
      positions_.push_back(static_cast<int32_t>(t % kLength));
    }
  }

  double loss() {
    Task<void> task = forward();
    Engine().run(lane_, task);
    const Stage::Saved& saved = saved_.stages.front();
    double loss = loss_sum_ / kTokens;
    for (const Block::Saved& block : saved.blocks) loss += block.moe.balance_loss;
    for (const MtpModule::Saved& further : saved.mtp) loss += further.block.moe.balance_loss;
    return loss;
  }

  void find_gradients() {
    store_.forget_grads();
    loss();
    Task<void> task = model_.backward(ctx_, saved_);
    Engine().run(lane_, task);
    store_.complete_grads();
  }

  const std::vector<Parameter*>& parameters() const { return store_.parameters(); }

 private:
  Task<void> forward() {
    arena_.release({});
    saved_ = {};
    const auto view = [](std::vector<int32_t>& values) { return Tensor(values.data(), DType::i32, {kTokens}); };
    saved_.stages.resize(1);
    Task<Stage::Output> task = model_.stage(0).forward(
        ctx_, {view(ids_), view(targets_), {kSequences, kLength, view(positions_)}}, Tensor(), saved_.stages.front());
    const Stage::Output output = co_await task;
    loss_sum_ = output.loss_sum + model_.config().mtp_loss_factor * output.mtp_loss_sum;
  }

  Lane lane_;
  Model model_;
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<Kernels> kernels_;
  Arena arena_{Arena::Mode::real, /*poison=*/true};
  LaneContext ctx_;
  ParameterStore store_;
  std::vector<int32_t> ids_, targets_, positions_;
  Model::Saved saved_;
  double loss_sum_ = 0.0;
};

void check_all_gradients(const ModelConfig& config) {
  test::on_one_rank([&](Communicator alone) {
    ModelRun run(config, alone);
    run.find_gradients();
    int num_checked = 0;
    for (const Parameter* parameter : run.parameters()) {
      if (!parameter->grad.defined()) continue;
      // A loss of about 2.5 through two layers: rounding and curvature are larger than in a single module.
      test::expect_gradient(
          parameter->name(), [&run] { return run.loss(); }, parameter->value, parameter->grad, 1e-6);
      ++num_checked;
    }
    EXPECT_GT(num_checked, 20);
  });
}

ModelConfig latent_config() {
  ModelConfig config = small_config("rmsnorm", "silu");
  config.model_type = "deepseek_v3";
  config.num_key_value_heads = config.num_attention_heads;
  config.q_lora_rank = 5;
  config.kv_lora_rank = 3;
  config.qk_nope_head_dim = 3;
  config.qk_rope_head_dim = 4;
  config.v_head_dim = 5;
  config.scoring_func = ScoreFunction::sigmoid;
  config.topk_method = TopkMethod::noaux_tc;
  config.num_experts_per_tok = 3;  // every expert gets a token
  config.routed_scaling_factor = 1.7;
  return config;
}

TEST(Model, gradients_equal_central_differences_with_latent_attention) {
  ModelConfig config = latent_config();
  config.rope_scaling = {.type = "yarn", .factor = 4, .mscale_all_dim = 0.8, .original_max_position_embeddings = 4};
  check_all_gradients(config);
}

TEST(Model, gradients_equal_central_differences_with_two_mtp_modules) {
  ModelConfig config = latent_config();
  config.num_nextn_predict_layers = 2;
  config.mtp_loss_factor = 0.7;
  check_all_gradients(config);
}

// A module's sequences are shorter than those of the model.
TEST(Model, gradients_equal_central_differences_with_mtp_modules_and_a_loss_by_sequence) {
  ModelConfig config = latent_config();
  config.num_nextn_predict_layers = 2;
  config.router.losses.by_sequence = true;
  check_all_gradients(config);
}

TEST(Model, gradients_equal_central_differences_with_one_table_and_an_mtp_module) {
  ModelConfig config = latent_config();
  config.q_lora_rank = 0;
  config.tie_word_embeddings = true;
  config.num_nextn_predict_layers = 1;
  check_all_gradients(config);
}

TEST(Model, gradients_equal_central_differences_with_rms_norm_and_swiglu) {
  check_all_gradients(small_config("rmsnorm", "silu"));
}

TEST(Model, gradients_equal_central_differences_with_layer_norm_and_gelu) {
  check_all_gradients(small_config("layernorm", "gelu"));
}

TEST(Model, gradients_equal_central_differences_with_post_norm_highway_and_the_mean_of_shared_experts) {
  ModelConfig config = small_config("layernorm", "silu");
  config.n_shared_experts = 2;
  config.norm_position = NormPosition::post;
  config.ffn_highway = true;
  config.shared_expert_mean = true;
  check_all_gradients(config);
  config.norm_position = NormPosition::pre;
  check_all_gradients(config);
}

TEST(Model, norms_have_the_epsilon_of_the_configuration) {
  ModelConfig config = small_config("layernorm", "silu");
  config.rms_norm_eps = 0.03;
  EXPECT_EQ(norm_options(config).epsilon, 0.03);
  EXPECT_EQ(norm_options(config).kind, NormKind::layer);
  EXPECT_EQ(norm_options(small_config("rmsnorm", "silu")).kind, NormKind::rms);
}

// The mean of n shared experts is their sum with outputs of an n-th.
TEST(Model, the_mean_of_shared_experts_divides_by_their_number) {
  test::on_one_rank([](Communicator alone) {
    const auto loss_of = [&](bool mean, double factor) {
      ModelConfig config = small_config("rmsnorm", "silu");
      config.n_shared_experts = 3;
      config.shared_expert_mean = mean;
      ModelRun run(config, alone);
      for (Parameter* parameter : run.parameters()) {
        if (parameter->name().find("shared_experts.down_proj") == std::string::npos) continue;
        for (int64_t i = 0; i < parameter->value.numel(); ++i) parameter->value.data<double>()[i] *= factor;
      }
      return run.loss();
    };
    EXPECT_NEAR(loss_of(true, 1.0), loss_of(false, 1.0 / 3.0), 1e-12);
    EXPECT_GT(std::abs(loss_of(true, 1.0) - loss_of(false, 1.0)), 1e-6);
  });
}

}  // namespace
}  // namespace cadre::model_test
