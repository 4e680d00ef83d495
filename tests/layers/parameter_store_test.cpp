// SPDX-License-Identifier: Apache-2.0
// Where parameters lie, how they start, and that the spans of gradients hold all of them and nothing else.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "layers/nn/attention.hpp"
#include "layers/nn/ffn.hpp"
#include "layers/nn/norm.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::parameter_store_test {
namespace {

using test::values_of;

// Shared, expert and buffer parameters, not in the order of the store, with sizes that need padding.
struct Fixture {
  Ffn expert{"expert", {.hidden = 3, .width = 5, .placement = Placement::expert}};
  Norm norm{"norm", {.hidden = 3}};
  Parameter bias = make_vector("bias", 7, Init::Kind::zeros, Placement::buffer);
  ParameterStore store;

  Fixture() {
    store.add(bias);
    store.add_all(expert);
    store.add_all(norm);
  }
};

TEST(ParameterStore, GradientsOfAGroupAreOneSpan) {
  Fixture f;
  f.store.allocate(DType::f32, true, false);
  EXPECT_EQ(f.store.parameters().size(), 4U);
  EXPECT_EQ(f.store.numel(Placement::shared), 3);
  EXPECT_EQ(f.store.numel(Placement::expert), 2 * 5 * 3 + 3 * 5);
  EXPECT_EQ(f.store.numel(Placement::buffer), 7);

  const Tensor shared = f.store.shared_grads();
  const Tensor experts = f.store.expert_grads();
  EXPECT_EQ(shared.numel(), 16);        // 3 floats, to 64 bytes
  EXPECT_EQ(experts.numel(), 32 + 16);  // 30 and 15 floats
  EXPECT_EQ(f.store.grad_bytes(), shared.bytes() + experts.bytes());
  EXPECT_EQ(f.store.value_bytes(), f.store.grad_bytes() + 64);

  EXPECT_EQ(values_of(shared), std::vector<double>(16, 0.0));
  EXPECT_EQ(values_of(experts), std::vector<double>(48, 0.0));

  // Ones in every gradient: the spans must sum to the number of elements, so padding is zero.
  for (Parameter* parameter : f.store.parameters()) {
    EXPECT_EQ(parameter->grad.defined(), parameter->placement != Placement::buffer) << parameter->name();
    if (!parameter->grad.defined()) continue;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(parameter->grad.raw()) % 64, 0U);
    for (int64_t i = 0; i < parameter->grad.numel(); ++i) parameter->grad.data<float>()[i] = 1.0F;
  }
  double shared_sum = 0.0;
  double expert_sum = 0.0;
  for (const double value : values_of(shared)) shared_sum += value;
  for (const double value : values_of(experts)) expert_sum += value;
  EXPECT_EQ(shared_sum, 3.0);
  EXPECT_EQ(expert_sum, 45.0);
}

TEST(ParameterStore, GradientsThatNobodyWroteBecomeZero) {
  Fixture f;
  f.store.allocate(DType::f32, true, false);
  const auto kernels = make_reference_kernels();
  f.norm.each_parameter([&](Parameter& parameter) { cleared_grad(*kernels, parameter).data<float>()[0] = 5.0F; });
  f.store.complete_grads();
  EXPECT_EQ(values_of(f.store.shared_grads())[0], 5.0);
  f.store.forget_grads();
  EXPECT_EQ(values_of(f.store.shared_grads())[0], 5.0) << "forgetting must not touch memory";
  f.store.complete_grads();
  EXPECT_EQ(values_of(f.store.shared_grads())[0], 0.0);
}

TEST(ParameterStore, ADryRunCountsTheSameBytesAndAllocatesNothing) {
  Fixture real;
  real.store.allocate(DType::f64, true, false);
  Fixture dry;
  dry.store.allocate(DType::f64, true, true);
  dry.store.initialise(1);
  EXPECT_GT(dry.store.value_bytes(), 0U);
  EXPECT_EQ(dry.store.value_bytes(), real.store.value_bytes());
  EXPECT_EQ(dry.store.grad_bytes(), real.store.grad_bytes());
  EXPECT_EQ(dry.store.expert_grads().numel(), real.store.expert_grads().numel());
  EXPECT_EQ(dry.store.parameters()[1]->value.raw(), nullptr);
  EXPECT_EQ(dry.store.parameters()[1]->value.dim(0), 10);
}

TEST(ParameterStore, InitialValuesDoNotDependOnFusing) {
  Parameter fused = make_weight({{"gate", 4}, {"up", 4}}, 3, 0.1);
  Parameter gate = make_weight({{"gate", 4}}, 3, 0.1, Placement::expert);
  Parameter up = make_weight({{"up", 4}}, 3, 0.1);
  ParameterStore together;
  together.add(fused);
  together.allocate(DType::f64, false, false);
  together.initialise(9);
  ParameterStore apart;
  apart.add(up);
  apart.add(gate);
  apart.allocate(DType::f64, false, false);
  apart.initialise(9);
  EXPECT_EQ(values_of(fused.value.rows(0, 4)), values_of(gate.value));
  EXPECT_EQ(values_of(fused.value.rows(4, 4)), values_of(up.value));
  EXPECT_NE(values_of(gate.value), values_of(up.value));
}

TEST(ParameterStore, InitialValuesFollowSeedKindAndType) {
  constexpr double kStd = 0.02;
  Parameter weight = make_weight({{"weight", 100}}, 100, kStd);
  Parameter gain = make_vector("gain", 5, Init::Kind::ones);
  Parameter offset = make_vector("offset", 5, Init::Kind::zeros);
  ParameterStore store;
  for (Parameter* parameter : {&weight, &gain, &offset}) store.add(*parameter);
  const auto initialised = [&](DType dtype, uint64_t seed) {
    store.allocate(dtype, false, false);
    test::poison(gain.value);
    test::poison(offset.value);
    store.initialise(seed);
    return values_of(weight.value);
  };
  const std::vector<double> in_f64 = initialised(DType::f64, 1);
  EXPECT_EQ(values_of(gain.value), std::vector<double>(5, 1.0));
  EXPECT_EQ(values_of(offset.value), std::vector<double>(5, 0.0));
  EXPECT_NE(initialised(DType::f64, 2), in_f64);

  const uint64_t version = weight.version;
  const std::vector<double> in_f32 = initialised(DType::f32, 1);
  EXPECT_GT(weight.version, version);
  double sum = 0.0;
  double squares = 0.0;
  for (size_t i = 0; i < in_f64.size(); ++i) {
    EXPECT_EQ(static_cast<float>(in_f64[i]), static_cast<float>(in_f32[i]));
    sum += in_f64[i];
    squares += in_f64[i] * in_f64[i];
  }
  // 10,000 draws: the mean has a standard error of std / 100, the standard deviation one of std / 141. Five of them.
  EXPECT_NEAR(sum / 1e4, 0.0, 5.0 * kStd / 100.0);
  EXPECT_NEAR(std::sqrt(squares / 1e4), kStd, 5.0 * kStd / 141.0);
}

template <class Module>
std::vector<std::string> part_names(Module module) {
  std::vector<std::string> names;
  module.each_parameter([&](Parameter& parameter) {
    for (const ParameterPart& part : parameter.parts) names.push_back(part.name);
  });
  return names;
}

TEST(ParameterStore, PartsHaveTheNamesOfPublishedCheckpoints) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(part_names(Ffn("mlp", {.hidden = 2, .width = 2, .activation = Activation::silu})),
            (Names{"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"}));
  EXPECT_EQ(part_names(Ffn("mlp", {.hidden = 2, .width = 2, .activation = Activation::gelu, .gated = false})),
            (Names{"mlp.up_proj.weight", "mlp.down_proj.weight"}));
  EXPECT_EQ(part_names(CausalAttention("self_attn", {.hidden = 2,
                                                     .num_heads = 1,
                                                     .num_kv_heads = 1,
                                                     .head_dim = 2,
                                                     .rope = plain_rope(1e4, 2, RopeLayout::halves)})),
            (Names{"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
                   "self_attn.o_proj.weight"}));
  EXPECT_EQ(part_names(Norm("norm", {.kind = NormKind::rms, .hidden = 2})), (Names{"norm.weight"}));
  EXPECT_EQ(part_names(Norm("norm", {.kind = NormKind::layer, .hidden = 2})), (Names{"norm.weight", "norm.bias"}));
}

TEST(ParameterStore, RefusesTwoParametersOfOneName) {
  Parameter fused = make_weight({{"gate", 4}, {"up", 4}}, 3, 0.1);
  Parameter up = make_weight({{"up", 4}}, 3, 0.1);
  ParameterStore store;
  store.add(fused);
  test::expect_message(test::message_of([&] { store.add(up); }), {"two parameters are named up"});
}

TEST(ParameterStore, RefusesGradientsOfAStoreWithout) {
  Fixture f;
  f.store.allocate(DType::f32, false, false);
  EXPECT_EQ(f.store.grad_bytes(), 0U);
  EXPECT_FALSE(f.store.parameters()[1]->grad.defined());
  test::expect_message(test::message_of([&] { f.store.shared_grads(); }), {"no gradients"});
}

}  // namespace
}  // namespace cadre::parameter_store_test
