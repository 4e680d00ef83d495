// SPDX-License-Identifier: Apache-2.0
// Every module's input and weight gradients against central differences, in fp64 on the reference kernels.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "layers/nn/attention.hpp"
#include "layers/nn/embedding.hpp"
#include "layers/nn/ffn.hpp"
#include "layers/nn/latent_attention.hpp"
#include "layers/nn/low_rank.hpp"
#include "layers/nn/norm.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/gradient_check.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::gradients_test {
namespace {

using test::dot;
using test::expect_gradient;
using test::expect_near;
using test::poison;
using test::values_of;

class GradientsTest : public testing::Test {
 protected:
  // Random values everywhere (also where a module starts at zeros or ones) and NaN in the gradients.
  template <class Module>
  void give_memory(Module& module) {
    store.add_all(module);
    store.allocate(DType::f64, true, false);
    uint64_t id = 100;
    module.each_parameter([&](Parameter& parameter) {
      test::fill_random(parameter.value, id++, 0.5);
      poison(parameter.grad);
    });
  }

  Tensor random(std::initializer_list<int64_t> shape, uint64_t id) {
    return test::random_tensor(arena, DType::f64, shape, id);
  }

  Sequences sequences_of(int64_t batch, int64_t length, int64_t first = 0) {
    const Sequences sequences{batch, length, arena.take("test", DType::i32, {batch * length})};
    fill_positions(sequences, first);
    return sequences;
  }

  // Checks the parameters, then that a second micro-batch adds the same again.
  template <class Module, class Loss>
  void expect_weight_gradients(Module& module, const typename Module::Saved& saved, Loss&& loss) {
    module.weight_grad(ctx, saved);
    std::vector<std::vector<double>> first;
    module.each_parameter([&](Parameter& parameter) {
      expect_gradient(parameter.name(), loss, parameter.value, parameter.grad);
      first.push_back(values_of(parameter.grad));
    });
    ASSERT_FALSE(first.empty());
    module.weight_grad(ctx, saved);
    size_t i = 0;
    module.each_parameter([&](Parameter& parameter) {
      std::vector<double> twice = first[i++];
      for (double& value : twice) value *= 2.0;
      // The second sum starts from the first one: a few roundings of values of order 10.
      expect_near(values_of(parameter.grad), twice, 1e-13);
    });
  }

  // For a module whose forward, given `saved`, is a function of x and of its parameters.
  template <class Module, class Forward>
  void expect_gradients(Module& module, const Tensor& x, Forward&& forward) {
    typename Module::Saved saved;
    const Tensor y = forward(saved);
    const Tensor dy = random({y.dim(0), y.dim(1)}, 1);
    const Tensor dx = module.input_grad(ctx, saved, dy);
    const auto loss = [&] {
      const ArenaScope scope(arena);
      typename Module::Saved scratch;
      return dot(forward(scratch), dy);
    };
    expect_gradient("x", loss, x, dx);
    expect_weight_gradients(module, saved, loss);
  }

  template <class Module>
  void expect_plain_gradients(Module& module, int64_t width) {
    give_memory(module);
    const Tensor x = random({5, width}, 2);
    expect_gradients(module, x, [&](typename Module::Saved& saved) { return module.forward(ctx, x, saved); });
  }

  // A rank without tokens writes zero gradients.
  template <class Module>
  void expect_zero_gradients(Module& module) {
    module.each_parameter([&](Parameter& parameter) {
      const std::vector<double> zeros(static_cast<size_t>(parameter.grad.numel()), 0.0);
      EXPECT_EQ(values_of(parameter.grad), zeros) << parameter.name();
    });
  }

  std::unique_ptr<Kernels> kernels = make_reference_kernels();
  Arena arena{Arena::Mode::real, true};
  Context ctx{*kernels, arena, DType::f64};
  ParameterStore store;
};

TEST_F(GradientsTest, RmsNorm) {
  Norm norm("norm", {.kind = NormKind::rms, .hidden = 6, .epsilon = 1e-2});
  expect_plain_gradients(norm, 6);
}

TEST_F(GradientsTest, LayerNorm) {
  Norm norm("norm", {.kind = NormKind::layer, .hidden = 6, .epsilon = 1e-2});
  expect_plain_gradients(norm, 6);
}

// A weight of two parts, each with an addition.
Parameter weight_with_additions(double dropout) {
  Parameter weight = make_weight({{"gate.weight", 3}, {"up.weight", 2}}, 4, 0.0);
  for (const ParameterPart& part : weight.parts) {
    LowRank& added = weight.low_rank.emplace_back();
    added.a = make_weight({{part.name + ".a", 2}}, 4, 0.0);
    added.b = make_weight({{part.name + ".b", part.num_rows}}, 2, 0.0);
    added.first_row = part.first_row;
    added.scale = 1.5;
    added.dropout = dropout;
  }
  return weight;
}

TEST_F(GradientsTest, LinearWithAdapters) {
  Linear linear(weight_with_additions(0.0));
  expect_plain_gradients(linear, 4);
  // y = W x + 1.5 b a x, row by row
  const Tensor x = random({1, 4}, 7);
  Linear::Saved saved;
  const std::vector<double> y = values_of(linear.forward(ctx, x, saved));
  for (int64_t row = 0; row < 5; ++row) {
    const LowRank& added = linear.weight().low_rank[row < 3 ? 0 : 1];
    double sum = 0.0;
    for (int64_t i = 0; i < 4; ++i) {
      double weight = element(linear.weight().value, row * 4 + i);
      for (int64_t k = 0; k < 2; ++k) {
        weight += 1.5 * element(added.b.value, (row - added.first_row) * 2 + k) * element(added.a.value, k * 4 + i);
      }
      sum += weight * element(x, i);
    }
    EXPECT_NEAR(y[static_cast<size_t>(row)], sum, 1e-13) << row;
  }
}

// What is left out follows the number of a token, wherever its row is.
TEST_F(GradientsTest, LinearWithDropout) {
  Linear linear(weight_with_additions(0.5));
  ctx.dropout = {.seed = 3, .step = 7, .rows = arena.take("test", DType::i64, {5})};
  for (int64_t row = 0; row < 5; ++row) ctx.dropout.rows.data<int64_t>()[row] = 100 - 9 * row;
  expect_plain_gradients(linear, 4);
  const Tensor x = random({5, 4}, 2);
  Linear::Saved saved;
  const std::vector<double> all = values_of(linear.forward(ctx, x, saved));
  ctx.dropout.rows = ctx.dropout.rows.rows(2, 1);
  EXPECT_EQ(values_of(linear.forward(ctx, x.rows(2, 1), saved)), std::vector(all.begin() + 10, all.begin() + 15));
  ctx.dropout.step = 8;
  EXPECT_NE(values_of(linear.forward(ctx, x.rows(2, 1), saved)), std::vector(all.begin() + 10, all.begin() + 15));
  ctx.dropout = {};
}

TEST_F(GradientsTest, DropoutKeepsTheMean) {
  const Tensor ones = arena.take("test", DType::f64, {400, 50});
  for (int64_t i = 0; i < ones.numel(); ++i) set_element(ones, i, 1.0);
  const Tensor rows = arena.take("test", DType::i64, {400});
  for (int64_t row = 0; row < 400; ++row) rows.data<int64_t>()[row] = row;
  drop_elements(*kernels, {.seed = 1, .step = 1, .rows = rows}, 0.2, "name", ones, ones);
  double sum = 0.0;
  for (int64_t i = 0; i < ones.numel(); ++i) {
    EXPECT_TRUE(element(ones, i) == 0.0 || element(ones, i) == 1.25);
    sum += element(ones, i);
  }
  EXPECT_NEAR(sum / 20000.0, 1.0, 5.0 * 0.5 / std::sqrt(20000.0));  // five standard deviations of 0.5 each
}

TEST_F(GradientsTest, Linear) {
  Linear linear("linear", 4, 3, 0.0);
  expect_plain_gradients(linear, 4);
}

TEST_F(GradientsTest, LinearWithBias) {
  Linear linear("linear", 4, 3, 0.0, Linear::Bias::added);
  expect_plain_gradients(linear, 4);
}

TEST_F(GradientsTest, FfnOfEachActivation) {
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::relu}) {
    for (const bool gated : {true, false}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(activation) << (gated ? " gated" : ""));
      store = ParameterStore();
      Ffn ffn("ffn", {.hidden = 4, .width = 7, .activation = activation, .gated = gated});
      expect_plain_gradients(ffn, 4);
    }
  }
}

TEST_F(GradientsTest, HighwayFfn) {
  HighwayFfn ffn("ffn", {.hidden = 4, .width = 7, .activation = Activation::silu});
  expect_plain_gradients(ffn, 4);
}

TEST_F(GradientsTest, AttentionWithAndWithoutGroupedHeads) {
  for (const int64_t num_kv_heads : {4, 2, 1}) {
    SCOPED_TRACE(num_kv_heads);
    store = ParameterStore();
    CausalAttention attention("attention", {.hidden = 6,
                                            .num_heads = 4,
                                            .num_kv_heads = num_kv_heads,
                                            .head_dim = 4,
                                            .rope = plain_rope(10.0, 4, RopeLayout::halves)});
    give_memory(attention);
    const Sequences sequences = sequences_of(2, 5);
    const Tensor x = random({10, 6}, 2);
    expect_gradients(attention, x,
                     [&](CausalAttention::Saved& saved) { return attention.forward(ctx, x, sequences, saved); });
  }
}

// Also with bounds of queries, keys and values that about half of them pass.
TEST_F(GradientsTest, AttentionWithNormsOfQueriesAndKeysBiasesAndBounds) {
  constexpr double kBound = 0.5;
  const auto passes = [](const Tensor& rows, double bound) {
    return std::ranges::count_if(test::values_of(rows), [&](double value) { return std::abs(value) > bound; });
  };
  for (const QkNorm norm : {QkNorm::head, QkNorm::full}) {
    store = ParameterStore();
    CausalAttention attention("attention", {.hidden = 6,
                                            .num_heads = 2,
                                            .num_kv_heads = 1,
                                            .head_dim = 4,
                                            .rope = plain_rope(10.0, 2, RopeLayout::halves),
                                            .qk_norm = norm,
                                            .clip = norm == QkNorm::full ? kBound : 0.0,
                                            .qkv_bias = Linear::Bias::added,
                                            .o_bias = Linear::Bias::added});
    give_memory(attention);
    const Sequences sequences = sequences_of(2, 5);
    const Tensor x = random({10, 6}, 2);
    expect_gradients(attention, x,
                     [&](CausalAttention::Saved& saved) { return attention.forward(ctx, x, sequences, saved); });
    if (norm == QkNorm::head) continue;
    CausalAttention::Saved saved;
    attention.forward(ctx, x, sequences, saved);
    for (const Tensor* rows : {&saved.unclipped_q, &saved.unclipped_k, &saved.unclipped_v}) {
      EXPECT_GT(passes(*rows, kBound), 5);
      EXPECT_LT(passes(*rows, kBound), rows->numel() - 5);
    }
  }
}

// With and without a latent query; values narrower and wider than keys; a stretched rope; one head.
TEST_F(GradientsTest, LatentAttention) {
  const Rope stretched =
      yarn_rope(10.0, 4, RopeLayout::interleaved,
                {.factor = 4, .beta_fast = 2, .beta_slow = 0.1, .mscale = 0.7, .original_max_position_embeddings = 8});
  const LatentAttentionOptions cases[] = {
      {.hidden = 6,
       .num_heads = 3,
       .q_rank = 5,
       .kv_rank = 4,
       .nope_dim = 3,
       .rope_dim = 4,
       .value_dim = 5,
       .rope = plain_rope(10.0, 4, RopeLayout::interleaved)},
      {.hidden = 6,
       .num_heads = 2,
       .q_rank = 0,
       .kv_rank = 3,
       .nope_dim = 2,
       .rope_dim = 4,
       .value_dim = 9,
       .rope = stretched,
       .score_factor = 1.5},
      {.hidden = 6,
       .num_heads = 1,
       .q_rank = 2,
       .kv_rank = 3,
       .nope_dim = 5,
       .rope_dim = 2,
       .value_dim = 1,
       .rope = plain_rope(10.0, 2, RopeLayout::halves)},
  };
  for (const LatentAttentionOptions& options : cases) {
    SCOPED_TRACE(options.num_heads);
    store = ParameterStore();
    LatentAttention attention("attention", options);
    give_memory(attention);
    const Sequences sequences = sequences_of(2, 5);
    const Tensor x = random({10, 6}, 2);
    expect_gradients(attention, x,
                     [&](LatentAttention::Saved& saved) { return attention.forward(ctx, x, sequences, saved); });
  }
}

TEST_F(GradientsTest, Embedding) {
  Embedding embedding("embedding", 5, 3, 0.0);
  give_memory(embedding);
  const Tensor ids = test::tensor_of(arena, DType::i32, {4}, {1, 4, 1, 0});  // 1 twice, 2 and 3 never
  const Tensor dy = random({4, 3}, 1);
  Embedding::Saved saved;
  embedding.forward(ctx, ids, saved);
  embedding.input_grad(ctx, saved, dy);
  expect_weight_gradients(embedding, saved, [&] {
    const ArenaScope scope(arena);
    Embedding::Saved scratch;
    return dot(embedding.forward(ctx, ids, scratch), dy);
  });
}

TEST_F(GradientsTest, Head) {
  constexpr double kScale = 0.25;
  Head head("head", 4, 6, 0.0);
  give_memory(head);
  const Tensor x = random({5, 4}, 2);
  const Tensor targets = test::tensor_of(arena, DType::i32, {5}, {0, 5, -1, 3, 3});
  const auto loss = [&] {
    const ArenaScope scope(arena);
    Head::Saved scratch;
    double sum = 0.0;
    for (const double token_loss : values_of(head.forward(ctx, x, targets, scratch))) sum += token_loss;
    return kScale * sum;
  };
  Head::Saved saved;
  const Tensor losses = head.forward(ctx, x, targets, saved);
  EXPECT_EQ(values_of(losses)[2], 0.0);
  const Tensor dx = head.input_grad(ctx, saved, kScale);
  expect_gradient("x", loss, x, dx);
  expect_weight_gradients(head, saved, loss);
}

TEST_F(GradientsTest, ModulesWithoutTokens) {
  const Tensor x = random({0, 4}, 1);
  const auto run = [&](auto& module, auto&& forward) {
    store = ParameterStore();
    give_memory(module);
    typename std::remove_reference_t<decltype(module)>::Saved saved;
    EXPECT_EQ(forward(saved).dim(0), 0);
    EXPECT_EQ(module.input_grad(ctx, saved, x).dim(0), 0);
    module.weight_grad(ctx, saved);
    expect_zero_gradients(module);
  };
  Norm rms_norm("norm", {.kind = NormKind::rms, .hidden = 4});
  run(rms_norm, [&](Norm::Saved& saved) { return rms_norm.forward(ctx, x, saved); });
  Norm layer_norm("norm", {.kind = NormKind::layer, .hidden = 4});
  run(layer_norm, [&](Norm::Saved& saved) { return layer_norm.forward(ctx, x, saved); });
  Ffn ffn("ffn", {.hidden = 4, .width = 3});
  run(ffn, [&](Ffn::Saved& saved) { return ffn.forward(ctx, x, saved); });
  CausalAttention attention(
      "attention",
      {.hidden = 4, .num_heads = 2, .num_kv_heads = 1, .head_dim = 2, .rope = plain_rope(10.0, 2, RopeLayout::halves)});
  const Sequences sequences = sequences_of(0, 5);
  run(attention, [&](CausalAttention::Saved& saved) { return attention.forward(ctx, x, sequences, saved); });
  LatentAttention latent("attention", {.hidden = 4,
                                       .num_heads = 2,
                                       .q_rank = 3,
                                       .kv_rank = 2,
                                       .nope_dim = 1,
                                       .rope_dim = 2,
                                       .value_dim = 3,
                                       .rope = plain_rope(10.0, 2, RopeLayout::interleaved)});
  run(latent, [&](LatentAttention::Saved& saved) { return latent.forward(ctx, x, sequences, saved); });
}

// Softmax and sigmoid have no module of their own yet a gradient kernel each.
TEST_F(GradientsTest, SoftmaxAndSigmoid) {
  const Tensor x = random({3, 5}, 1);
  const Tensor dy = random({3, 5}, 2);
  const Tensor y = arena.take("test", DType::f64, {3, 5});
  const Tensor dx = arena.take("test", DType::f64, {3, 5});
  const auto softmax_loss = [&] {
    kernels->softmax(x, y);
    return dot(y, dy);
  };
  softmax_loss();
  kernels->softmax_grad(y, dy, dx);
  expect_gradient("softmax", softmax_loss, x, dx);
  const auto sigmoid_loss = [&] {
    kernels->sigmoid(x, y);
    return dot(y, dy);
  };
  sigmoid_loss();
  poison(dx);
  kernels->sigmoid_grad(y, dy, dx);
  expect_gradient("sigmoid", sigmoid_loss, x, dx);
}

}  // namespace
}  // namespace cadre::gradients_test
