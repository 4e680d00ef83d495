// SPDX-License-Identifier: Apache-2.0
// A DeepSeek-V3 of a few thousand parameters that trains on the CPU back end and on the twin of a GPU: the same losses and
// gradients, through latent attention, dense and mixture layers, a further token, and AdamW.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "comm/progress/engine.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "layers/tensor/tensor.hpp"
#include "tests/support/fast_back_ends.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::gpu_model_test {
namespace {

constexpr int64_t kSequences = 2;
constexpr int64_t kLength = 21;
constexpr int64_t kTokens = kSequences * kLength;
constexpr int kSteps = 5;

ModelConfig small_v3() {
  ModelConfig c;
  c.model_type = "deepseek_v3";
  c.vocab_size = 50;
  c.hidden_size = 24;
  c.num_hidden_layers = 2;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 3;
  c.q_lora_rank = 10;
  c.kv_lora_rank = 12;
  c.qk_nope_head_dim = 6;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 7;
  c.intermediate_size = 40;
  c.moe_intermediate_size = 14;
  c.n_routed_experts = 12;
  c.num_experts_per_tok = 3;
  c.n_shared_experts = 1;
  c.n_group = 4;
  c.topk_group = 2;
  c.scoring_func = ScoreFunction::sigmoid;
  c.topk_method = TopkMethod::noaux_tc;
  c.norm_topk_prob = true;
  c.routed_scaling_factor = 2.5;
  c.aux_loss_alpha = 0.01;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = kLength;
  c.initializer_range = 0.1;
  fill_defaults(c);
  return c;
}

class Training {
 public:
  Training(Communicator& alone, std::unique_ptr<Kernels> kernels)
      : lane_(0, alone.duplicate("expert"), alone.duplicate("data")),
        model_(small_v3(), make_expert_map(small_v3(), 1), 0),
        kernels_(std::move(kernels)),
        exchange_(make_exchange("flat", setup())),
        ctx_{{*kernels_, arena_, DType::f32}, lane_, *exchange_, CombineMode::partial, {}, 1.0 / kTokens} {
    store_.add_all(model_);
    store_.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false, kernels_->memory());
    store_.initialise(5);
    for (size_t i = 0; i < store_.parameters().size(); ++i) {
      const Tensor& value = store_.parameters()[i]->value;
      for (auto* moments : {&first_, &second_}) {
        moments->push_back(moments_.take("moments", DType::f32, {value.numel()}));
        kernels_->memory().fill(moments->back().raw(), std::byte{0}, moments->back().bytes());
      }
    }
  }

  double step() {
    arena_.release({});
    store_.forget_grads();
    double loss = 0.0;
    Task<void> task = forward_and_backward(loss);
    Engine().run(lane_, task);
    store_.complete_grads();
    ++num_steps_;
    return loss;
  }

  void update() {
    const AdamWStep step = {.learning_rate = 1e-2,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .epsilon = 1e-8,
                            .weight_decay = 0.1,
                            .grad_scale = 1.0,
                            .step = num_steps_};
    for (size_t i = 0; i < store_.parameters().size(); ++i) {
      Parameter& parameter = *store_.parameters()[i];
      if (!parameter.grad.defined()) continue;
      kernels_->adamw(step, parameter.value, parameter.grad, first_[i], second_[i]);
      ++parameter.version;
    }
  }

  const std::vector<Parameter*>& parameters() const { return store_.parameters(); }
  std::vector<double> gradient(size_t i) const {
    return test::values_of(*OnHost(store_.parameters()[i]->grad, kernels_->memory()));
  }

 private:
  ExchangeSetup setup() const {
    ExchangeSetup setup = {lane_.expert_group(), Topology::uniform(1, 1)};
    setup.device_codec = kernels_->device_codec();
    return setup;
  }

  Tensor ints(int64_t (*value)(int64_t sequence, int64_t position)) {
    const Tensor tensor = arena_.take_host("tokens", DType::i32, {kTokens});
    for (int64_t i = 0; i < kTokens; ++i) {
      tensor.data<int32_t>()[i] = static_cast<int32_t>(value(i / kLength, i % kLength));
    }
    return tensor;
  }

  Task<void> forward_and_backward(double& loss) {
    const auto token = [](int64_t s, int64_t p) { return (7 * s + 3 * p * p + 1) % 50; };
    const auto next = [](int64_t s, int64_t p) {
      return p + 1 < kLength ? (7 * s + 3 * (p + 1) * (p + 1) + 1) % 50 : int64_t{-1};
    };
    const auto position = [](int64_t, int64_t p) { return p; };
    const TokenBatch batch = {ints(token), ints(next), {kSequences, kLength, ints(position)}};
    Stage::Saved saved;
    Stage& stage = model_.stage(0);
    Task<Stage::Output> forward = stage.forward(ctx_, batch, Tensor(), saved);
    const Stage::Output output = co_await forward;
    loss = output.loss_sum / kTokens;
    Task<Tensor> backward = stage.backward(ctx_, saved, Tensor(), Stage::Weights::at_once);
    co_await backward;
  }

  Lane lane_;
  Model model_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Exchange> exchange_;
  Arena arena_{Arena::Mode::real, /*poison=*/true, kernels_->memory()};
  Arena moments_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  LaneContext ctx_;
  ParameterStore store_;
  std::vector<Tensor> first_, second_;
  int64_t num_steps_ = 0;
};

double norm_of(const Tensor& tensor) { return std::sqrt(test::dot(tensor, tensor)); }

// Sums of some hundred terms in fp32 in another order: some 1e-6 of a gradient; five updates of AdamW, which divides by
// the size of a gradient however small, let losses part by 1e-4 at most.
void expect_to_train_as_the_cpu(std::unique_ptr<Kernels> kernels) {
  test::on_one_rank([&](Communicator alone) {
    Training cpu(alone, make_cpu_kernels(Precision::fp32));
    Training gpu(alone, std::move(kernels));
    double first = 0.0;
    double last = 0.0;
    for (int step = 0; step < kSteps; ++step) {
      const double loss = cpu.step();
      EXPECT_NEAR(gpu.step(), loss, (step == 0 ? 1e-6 : 1e-4) * loss) << "step " << step;
      if (step == 0) {
        first = loss;
        for (size_t i = 0; i < cpu.parameters().size(); ++i) {
          const Parameter& expected = *cpu.parameters()[i];
          if (!expected.grad.defined()) continue;
          const double norm = norm_of(expected.grad);
          EXPECT_GT(norm, 0.0) << expected.name();
          test::expect_near(gpu.gradient(i), test::values_of(expected.grad), 1e-5 * norm);
        }
      }
      last = loss;
      cpu.update();
      gpu.update();
    }
    EXPECT_LT(last, first);
  });
}

TEST(GpuModel, TwinTrainsAsTheCpuDoes) { expect_to_train_as_the_cpu(test::make_twin_with_copies()); }

// As on a device: parameters and activations where they are, what the host makes of routing in copies.
TEST(GpuModel, TwinWithMemoryOfItsOwnTrainsAsTheCpuDoes) {
  expect_to_train_as_the_cpu(test::make_gpu_twin(test::TwinOrder::ascending, test::TwinMemory::own));
}

TEST(GpuModel, DeviceTrainsAsTheCpuDoes) {
  auto kernels = test::make_on_cuda();
  CADRE_SKIP_WITHOUT(kernels);
  expect_to_train_as_the_cpu(std::move(kernels));
}

}  // namespace
}  // namespace cadre::gpu_model_test
