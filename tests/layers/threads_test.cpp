// SPDX-License-Identifier: Apache-2.0
// The number of threads changes no bit of any kernel of the CPU back end, at sizes that are cut into several parts.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "comm/job/thread_pool.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::threads_test {
namespace {

constexpr int64_t kRows = 700;
constexpr int64_t kWidth = 200;
constexpr int64_t kOut = 330;

class Threads : public testing::Test {
 protected:
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }
  Tensor indices(std::initializer_list<int64_t> shape, int64_t end) {
    const Tensor tensor = arena.take("index", DType::i32, shape);
    for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data<int32_t>()[i] = static_cast<int32_t>(i * 7919 % end);
    return tensor;
  }
  // Calls `compute` with outputs that start with the same numbers, on 1, 2 and 3 threads.
  void expect_same(const std::string& what, const std::vector<Tensor>& outputs,
                   const std::function<void(const Kernels&)>& compute, Precision precision = Precision::fp32,
                   const std::string& products = "openblas") {
    std::vector<std::vector<char>> first;
    for (const int size : {1, 2, 3}) {
      ThreadPool threads;
      threads.resize(size);
      const auto kernels =
          make_cpu_kernels(precision, {.threads = &threads, .products = ProductChoice::parse(products, "products")});
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (outputs[i].dtype() == DType::f32) test::fill_random(outputs[i], 90 + i);
      }
      compute(*kernels);
      for (size_t i = 0; i < outputs.size(); ++i) {
        const auto* bytes = reinterpret_cast<const char*>(outputs[i].raw());
        if (size == 1) first.emplace_back(bytes, bytes + outputs[i].bytes());
        EXPECT_EQ(std::memcmp(first[i].data(), bytes, first[i].size()), 0)
            << what << ", output " << i << ", " << size << " threads, " << products;
      }
    }
  }

  Arena arena{Arena::Mode::real, true};
  uint64_t next_id = 0;
};

TEST_F(Threads, Products) {
  std::vector<std::string> ways = {"openblas", "nt=bbbb nn=bbbb tn=bbbb copy=1111"};
  if (has_onednn()) ways.insert(ways.end(), {"onednn", "onednn-packed"});
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp8}) {
    for (const bool trains : {false, true}) {
      for (const std::string& way : ways) {
        const Tensor x = random({kRows, kWidth});
        const Tensor dy = random({kRows, kOut});
        const Tensor value = random({kOut, kWidth});
        const std::vector<Tensor> outputs = {random({kRows, kOut}), random({kRows, kWidth}), random({kOut, kWidth}),
                                             random({3, kOut})};
        expect_same(
            "products", outputs,
            [&](const Kernels& kernels) {
              Parameter weight;
              weight.value = value;
              if (trains) weight.grad = outputs[2];
              kernels.linear(x, weight, outputs[0]);
              kernels.linear_input_grad(dy, weight, outputs[1], Accumulate::yes);
              kernels.linear_weight_grad(x, dy, outputs[2], Accumulate::yes);
              kernels.linear(x.rows(0, 3), weight, outputs[3]);
            },
            precision, way);
      }
    }
  }
}

TEST_F(Threads, Norms) {
  const Tensor x = random({kRows, kWidth});
  const Tensor dy = random({kRows, kWidth});
  const Tensor weight = random({kWidth});
  const Tensor bias = random({kWidth});
  const std::vector<Tensor> outputs = {random({kRows, kWidth}), random({kRows}), random({kRows, kWidth}),
                                       random({kWidth}),        random({kRows}), random({kWidth})};
  expect_same("RMSNorm", outputs, [&](const Kernels& kernels) {
    kernels.rms_norm(x, weight, 1e-6, outputs[0], outputs[1]);
    kernels.rms_norm_input_grad(dy, x, weight, outputs[1], outputs[2]);
    kernels.rms_norm_weight_grad(dy, x, outputs[1], outputs[3]);
  });
  expect_same("LayerNorm", outputs, [&](const Kernels& kernels) {
    kernels.layer_norm(x, weight, bias, 1e-6, outputs[0], outputs[4], outputs[1]);
    kernels.layer_norm_input_grad(dy, x, weight, outputs[4], outputs[1], outputs[2]);
    kernels.layer_norm_weight_grad(dy, x, outputs[4], outputs[1], outputs[3], outputs[5]);
  });
}

TEST_F(Threads, ElementwiseAndSoftmax) {
  const Tensor x = random({kRows, kWidth});
  const Tensor dy = random({kRows, kWidth});
  const Tensor gate_up = random({kRows, 2 * kWidth});
  const Tensor targets = indices({kRows}, kWidth);
  const std::vector<Tensor> outputs = {random({kRows, kWidth}),
                                       random({kRows, kWidth}),
                                       random({kRows, 2 * kWidth}),
                                       random({kRows, kWidth}),
                                       random({kRows}),
                                       random({kRows, kWidth}),
                                       arena.take("ids", DType::i32, {kRows, 5})};
  expect_same("SwiGLU, softmax, cross-entropy, top-k", outputs, [&](const Kernels& kernels) {
    kernels.activation(Activation::gelu, x, outputs[0]);
    kernels.swiglu(gate_up, outputs[1]);
    kernels.swiglu_grad(gate_up, dy, outputs[2]);
    kernels.softmax(x, outputs[3]);
    kernels.cross_entropy(x, targets, outputs[4]);
    kernels.cross_entropy_grad(x, targets, 0.5, outputs[5]);
    kernels.top_k(x, Tensor(), outputs[6]);
  });
  expect_same("add, sigmoid, blend", outputs, [&](const Kernels& kernels) {
    kernels.add(x, dy, outputs[0]);
    kernels.sigmoid(x, outputs[1]);
    kernels.blend(outputs[1], x, dy, outputs[3]);
    kernels.softmax_grad(x, dy, outputs[5]);
  });
}

TEST_F(Threads, AttentionAndRope) {
  const AttentionShape shape = {.batch = 2,
                                .q_len = 150,
                                .kv_len = 150,
                                .kv_stride = 150,
                                .num_heads = 6,
                                .num_kv_heads = 3,
                                .head_dim = 24,
                                .value_dim = 16,
                                .scale = 0.2};
  const Tensor q = random({300, 6, 24});
  const Tensor k = random({300, 3, 24});
  const Tensor v = random({300, 3, 16});
  const Tensor dout = random({300, 6, 16});
  const std::vector<Tensor> outputs = {random({300, 6, 16}), random({2, 6, 150}),  random({300, 6, 24}),
                                       random({300, 3, 24}), random({300, 3, 16}), random({300, 6, 24})};
  const Tensor positions = indices({300}, 150);
  const Rope rope = {.frequencies = {1.0, 0.1, 0.01}, .first = 2};
  for (const std::string products : {"openblas", has_onednn() ? "onednn" : "openblas"}) {
    expect_same(
        "attention", outputs,
        [&](const Kernels& kernels) {
          kernels.attention(shape, q, k, v, outputs[0], outputs[1]);
          kernels.attention_grad(shape, q, k, v, outputs[0], outputs[1], dout, outputs[2], outputs[3], outputs[4]);
          kernels.rope(outputs[5], positions, rope, RopeDirection::forward);
        },
        Precision::fp32, products);
  }
}

TEST_F(Threads, RowsAndOptimizer) {
  const Tensor table = random({50, kWidth});
  const Tensor ids = indices({kRows}, 50);
  const Tensor dy = random({kRows, kWidth});
  const Tensor grad = random({kRows, kWidth});
  const std::vector<Tensor> outputs = {random({kRows, kWidth}), random({50, kWidth}),    random({kRows, kWidth}),
                                       random({kRows, kWidth}), random({kRows, kWidth}), random({1})};
  expect_same("embedding, AdamW", outputs, [&](const Kernels& kernels) {
    kernels.embedding(ids, table, outputs[0]);
    kernels.embedding_grad(ids, dy, outputs[1]);
    for (int64_t i = 0; i < outputs[4].numel(); ++i) outputs[4].data<float>()[i] *= outputs[4].data<float>()[i];
    kernels.adamw({.learning_rate = 0.1,
                   .beta1 = 0.9,
                   .beta2 = 0.95,
                   .epsilon = 1e-8,
                   .weight_decay = 0.1,
                   .grad_scale = 0.5,
                   .step = 3},
                  outputs[2], grad, outputs[3], outputs[4]);
    outputs[5].data<float>()[0] = static_cast<float>(kernels.sum_squares(grad));
  });
}

}  // namespace
}  // namespace cadre::threads_test
