// SPDX-License-Identifier: Apache-2.0
// That the bodies of GPU kernels may run in parallel: elements and blocks in either direction, on the memory itself or on
// copies of what they say they touch, and on as many threads as a block has, give the same bits. That they are right is the
// matter of fast_*_test.
#include "tests/support/gpu_twin.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "layers/kernels/gpu/kernels_inl.hpp"
#include "layers/nn/attention.hpp"
#include "tests/support/cuda_on_threads.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::gpu_twin_test {
namespace {

using test::TwinMemory;
using test::TwinOrder;

constexpr int64_t kRows = 2;
constexpr int64_t kWidth = 300;  // more than the threads of a block

// Every kernel once on the same inputs; all that was written.
class Everything {
 public:
  explicit Everything(const Kernels& kernels) : kernels_(kernels) {
    elements();
    rows();
    routing();
    attention();
    kernels_.synchronize();
  }
  const std::vector<Tensor>& outputs() const { return outputs_; }

 private:
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena_, DType::f32, shape, next_id_++);
  }
  Tensor ints(const std::vector<double>& values) {
    return test::tensor_of(arena_, DType::i32, {static_cast<int64_t>(values.size())}, values);
  }
  Tensor out(std::initializer_list<int64_t> shape, DType dtype = DType::f32) {
    return outputs_.emplace_back(arena_.take("out", dtype, shape));
  }
  // Starts as random values.
  Tensor changed(std::initializer_list<int64_t> shape) { return outputs_.emplace_back(random(shape)); }

  void elements() {
    const Tensor a = random({kRows, kWidth});
    const Tensor b = random({kRows, kWidth});
    const Tensor g = random({kRows, kWidth});
    for (const Activation kind : {Activation::relu, Activation::gelu, Activation::silu}) {
      kernels_.activation(kind, a, out({kRows, kWidth}));
      kernels_.activation_grad(kind, a, b, out({kRows, kWidth}));
    }
    kernels_.swiglu(a, out({kRows, kWidth / 2}));
    kernels_.swiglu_grad(a, random({kRows, kWidth / 2}), out({kRows, kWidth}));
    kernels_.add(a, b, out({kRows, kWidth}));
    kernels_.scaled_sum(0.3, a, -1.7, b, out({kRows, kWidth}));
    kernels_.blend(g, a, b, out({kRows, kWidth}));
    kernels_.blend_grad(g, a, b, a, out({kRows, kWidth}), out({kRows, kWidth}), out({kRows, kWidth}));
    kernels_.sigmoid(a, out({kRows, kWidth}));
    kernels_.sigmoid_grad(a, b, out({kRows, kWidth}));
    kernels_.clip(0.5, a, out({kRows, kWidth}));
    kernels_.clip_grad(0.5, a, b, out({kRows, kWidth}));
    const AdamWStep step = {.learning_rate = 1e-3,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .epsilon = 1e-8,
                            .weight_decay = 0.1,
                            .grad_scale = 1.0,
                            .step = 2};
    const Tensor second = changed({kWidth});
    for (int64_t i = 0; i < kWidth; ++i) second.data<float>()[i] *= second.data<float>()[i];
    kernels_.adamw(step, changed({kWidth}), random({kWidth}), changed({kWidth}), second);
    test::put_element(out({1}), 0, kernels_.sum_squares(random({200'000})));
  }

  void rows() {
    const Tensor x = random({kRows, kWidth});
    const Tensor dy = random({kRows, kWidth});
    const Tensor w = random({kWidth});
    const Tensor rstd = out({kRows});
    const Tensor mean = out({kRows});
    kernels_.rms_norm(x, w, 1e-6, out({kRows, kWidth}), rstd);
    kernels_.rms_norm_input_grad(dy, x, w, rstd, out({kRows, kWidth}));
    kernels_.rms_norm_weight_grad(dy, x, rstd, changed({kWidth}));
    kernels_.layer_norm(x, w, w, 1e-5, out({kRows, kWidth}), mean, rstd);
    kernels_.layer_norm_input_grad(dy, x, w, mean, rstd, out({kRows, kWidth}));
    kernels_.layer_norm_weight_grad(dy, x, mean, rstd, changed({kWidth}), changed({kWidth}));
    kernels_.softmax(x, out({kRows, kWidth}));
    kernels_.softmax_grad(x, dy, out({kRows, kWidth}));
    const Tensor targets = ints({299, -1});
    kernels_.cross_entropy(x, targets, out({kRows}));
    kernels_.cross_entropy_grad(x, targets, 0.5, out({kRows, kWidth}));
    const Tensor ids = ints({1, 1, 0, 0, 1});
    kernels_.embedding(ids, x, out({5, kWidth}));
    kernels_.embedding_grad(ids, random({5, kWidth}), changed({kRows, kWidth}));
    kernels_.gather_rows(x, ids, random({5}), out({5, kWidth}));
    kernels_.sum_rows(x, ints({0, 2, 2, 5}), ids, random({5}), out({3, kWidth}));
    kernels_.dot_rows(x, ids, dy, ints({1, 0, 0, 1, 1}), out({5}));
    kernels_.copy_columns({x, 3, 7}, {changed({2 * kRows, 20}), 5, 7});
    kernels_.sum_columns({random({2 * kRows, 20}), 5, 7}, {changed({kRows, kWidth}), 3, 7});
    kernels_.copy_columns({x, 4, 12}, {changed({2 * kRows, 20}), 8, 12});  // in fours, like those of rows
    kernels_.sum_columns({random({2 * kRows, 20}), 8, 12}, {changed({kRows, kWidth}), 4, 12});
    kernels_.swiglu(random({kRows, 2 * kWidth}), out({kRows, kWidth}));
    kernels_.swiglu_grad(random({kRows, 2 * kWidth}), dy, out({kRows, 2 * kWidth}));
  }

  void routing() {
    const Tensor scores = random({kRows, 64});
    const Tensor bias = random({64});
    kernels_.top_k(scores, bias, out({kRows, 6}, DType::i32));
    for (const bool softmax : {false, true}) {
      const RouteRule rule = {.softmax = softmax, .groups = 8, .kept = 3, .summed = 2, .scale = 2.5};
      const RouteResult result = {.scores = out({kRows, 64}),
                                  .ids = out({kRows, 6}, DType::i32),
                                  .weights = out({kRows, 6}),
                                  .not_finite = out({kRows}, DType::i32),
                                  .best = out({kRows, 6}, DType::i32),
                                  .inverse = out({kRows, 1})};
      kernels_.route(rule, scores, bias, result);
      kernels_.route_grad(rule, result.scores, result.ids, random({kRows, 6}), {random({kRows, 64}), random({64})},
                          out({kRows, 64}));
    }
  }

  void attention() {
    const AttentionShape shape = {.batch = 1,
                                  .q_len = 19,
                                  .kv_len = 35,
                                  .kv_stride = 36,
                                  .num_heads = 2,
                                  .num_kv_heads = 1,
                                  .head_dim = 12,
                                  .value_dim = 10,
                                  .scale = 0.3};
    const Tensor q = random({19, 2, 12});
    const Tensor k = random({36, 1, 12});
    const Tensor v = random({36, 1, 10});
    const Tensor y = out({19, 2, 10});
    const Tensor lse = out({1, 2, 19});
    kernels_.attention(shape, q, k, v, y, lse);
    kernels_.attention_grad(shape, q, k, v, y, lse, random({19, 2, 10}), out({19, 2, 12}), changed({36, 1, 12}),
                            changed({36, 1, 10}));
    const Tensor heads = changed({5, 3, 16});
    kernels_.rope(heads, ints({0, 9, 4000, 2, 1}), plain_rope(1e4, 12, RopeLayout::halves), RopeDirection::forward);
    const Tensor weight = random({3 * 8, 16});
    kernels_.head_linear(heads, {weight, 3, 2, 5}, out({5, 3, 5}));
    kernels_.head_linear_transposed(random({5, 3, 5}), {weight, 3, 2, 5}, changed({5, 3, 20}));
  }

  const Kernels& kernels_;
  Arena arena_{Arena::Mode::real, /*poison=*/true};
  uint64_t next_id_ = 0;
  std::vector<Tensor> outputs_;
};

void expect_same_bits(const Kernels& left, const Kernels& right) {
  const Everything one(left);
  const Everything other(right);
  ASSERT_GT(one.outputs().size(), 50U);
  ASSERT_EQ(one.outputs().size(), other.outputs().size());
  for (size_t i = 0; i < one.outputs().size(); ++i) {
    const Tensor& a = one.outputs()[i];
    const Tensor& b = other.outputs()[i];
    ASSERT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0) << "output " << i << ", " << a.describe();
  }
}

TEST(GpuTwin, OrderAndPlaceOfMemoryChangeNoBit) {
  expect_same_bits(*test::make_gpu_twin(TwinOrder::ascending, TwinMemory::reached),
                   *test::make_gpu_twin(TwinOrder::descending, TwinMemory::copied));
}

// Not a whole number of words, and as large as may be.
struct Odd {
  std::array<uint16_t, 5> of = {};
};
struct Wide {
  std::array<uint64_t, 2> of = {};
};

// Neither associative nor commutative.
struct Mix {
  template <class T>
  T operator()(T a, const T& b) const {
    for (size_t i = 0; i < a.of.size(); ++i) {
      a.of[i] = static_cast<typename decltype(a.of)::value_type>(31 * (a.of[i] ^ (a.of[i] >> 5)) +
                                                                 7 * b.of[(i + 1) % b.of.size()] + 1);
    }
    return a;
  }
};

// Several reductions one behind the other, which share their room.
template <class T>
struct ReduceOften {
  T* out;  // [blocks, 5]
  int num_threads;
  int threads() const { return num_threads; }
  template <class Block>
  void operator()(Block& block) const {
    for (int64_t k = 0; k < 5; ++k) {
      const T all = block.reduce(
          100 * k, T(),
          [&](int64_t i) {
            return Mix()(T(), T{{static_cast<uint8_t>(i), static_cast<uint8_t>(k)}});
          },
          Mix());
      block.each(1, [&](int64_t) { out[5 * block.index() + k] = all; });
    }
  }
};

template <class T>
void expect_same_reductions(int num_threads) {
  std::array<T, 10> of_twin;
  std::array<T, 10> of_threads;
  test::TwinMachine twin(TwinOrder::descending, TwinMemory::reached);
  test::ThreadsMachine threads;
  twin.blocks(2, 0, ReduceOften<T>{of_twin.data(), num_threads});
  threads.blocks(2, 0, ReduceOften<T>{of_threads.data(), num_threads});
  twin.wait();
  threads.wait();
  for (size_t i = 0; i < of_twin.size(); ++i) EXPECT_EQ(of_twin[i].of, of_threads[i].of) << num_threads << " " << i;
}

TEST(GpuTwin, ReducesInTheOrderOfThreads) {
  for (const int num_threads : {32, 96, 256}) {
    expect_same_reductions<Odd>(num_threads);
    expect_same_reductions<Wide>(num_threads);
  }
}

TEST(GpuTwin, ThreadsOfABlockChangeNoBit) {
  expect_same_bits(*test::make_gpu_twin(TwinOrder::ascending, TwinMemory::reached),
                   *make_gpu_kernels("threads", std::make_shared<test::ThreadsMachine>(), Precision::fp32));
}

// Products of small matrices, in tiles of fp8 that are whole and parts of one.
std::vector<std::vector<double>> products(const Kernels& kernels) {
  constexpr int64_t kOut = 20;
  constexpr int64_t kIn = 140;
  Arena arena(Arena::Mode::real, /*poison=*/true);
  const Tensor x = test::random_tensor(arena, DType::f32, {kRows, kIn}, 1);
  const Tensor dy = test::random_tensor(arena, DType::f32, {kRows, kOut}, 2);
  Parameter weight;
  weight.value = test::random_tensor(arena, DType::f32, {kOut, kIn}, 3);
  const Tensor y = arena.take("y", DType::f32, {kRows, kOut});
  const Tensor dx = arena.take("dx", DType::f32, {kRows, kIn});
  const Tensor dw = arena.take("dw", DType::f32, {kOut, kIn});
  kernels.linear(x, weight, y);
  kernels.linear_input_grad(dy, weight, dx, Accumulate::no);
  kernels.linear_weight_grad(x, dy, dw, Accumulate::no);
  kernels.synchronize();
  return {test::values_of(y), test::values_of(dx), test::values_of(dw)};
}

TEST(GpuTwin, ProductsInFp8KeepTheirBits) {
  for (const test::TwinFp8 fp8 : {test::TwinFp8::rounded, test::TwinFp8::multiplied}) {
    const auto in_place =
        products(*test::make_gpu_twin(TwinOrder::ascending, TwinMemory::reached, Precision::fp8, fp8));
    const auto copied = products(*test::make_gpu_twin(TwinOrder::descending, TwinMemory::copied, Precision::fp8, fp8));
    EXPECT_EQ(in_place, copied);
    if (fp8 == test::TwinFp8::rounded) continue;
    const auto on_threads = std::make_shared<test::ThreadsMachine>(fp8);
    EXPECT_EQ(in_place, products(*make_gpu_kernels("threads", on_threads, Precision::fp8)));
  }
}

}  // namespace
}  // namespace cadre::gpu_twin_test
