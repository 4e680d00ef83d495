// SPDX-License-Identifier: Apache-2.0
// Tiled attention against the reference: prefill over several tiles, chunks behind a cache, decoding, grouped heads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>

#include "layers/kernels/kernels.hpp"
#include "tests/support/fast_back_ends.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::fast_attention_test {
namespace {

constexpr double u = 0x1p-24;

AttentionShape shape_of(int64_t batch, int64_t q_len, int64_t kv_len, int64_t kv_stride, int64_t num_heads,
                        int64_t num_kv_heads, int64_t head_dim, int64_t value_dim = 0) {
  return {.batch = batch,
          .q_len = q_len,
          .kv_len = kv_len,
          .kv_stride = kv_stride,
          .num_heads = num_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = head_dim,
          .value_dim = value_dim == 0 ? head_dim : value_dim,
          .scale = 1.0 / std::sqrt(static_cast<double>(head_dim))};
}

const AttentionShape kShapes[] = {
    shape_of(2, 9, 9, 9, 3, 3, 16),        // less than a tile
    shape_of(1, 150, 150, 150, 2, 1, 20),  // tiles of 64, 64 and 22, grouped
    shape_of(2, 70, 133, 140, 4, 2, 33),   // a chunk behind 63 cached keys, rows behind the sequence
    shape_of(3, 1, 41, 64, 6, 2, 24),      // decoding, groups of 3
    shape_of(2, 1, 1, 5, 2, 2, 8),         // decoding, the first token
    shape_of(1, 3, 3, 3, 1, 1, 192),       shape_of(0, 4, 4, 4, 2, 2, 8),
    shape_of(2, 70, 70, 70, 3, 3, 24, 17),  // values narrower than keys, as in latent attention
    shape_of(2, 5, 11, 12, 4, 1, 6, 13),    // and wider, a chunk of one shared head
    shape_of(1, 300, 310, 310, 2, 1, 6),    // more rows than a tile of a GPU, of heads together
    shape_of(2, 270, 270, 270, 4, 2, 5),    // and of heads one after the other
};

class FastAttention : public testing::TestWithParam<std::tuple<test::FastBackEnd, AttentionShape>> {
 protected:
  FastAttention() {
    q = random({shape.batch * shape.q_len, shape.num_heads, shape.head_dim}, 1);
    k = random({shape.batch * shape.kv_stride, shape.num_kv_heads, shape.head_dim}, 2);
    v = random({shape.batch * shape.kv_stride, shape.num_kv_heads, shape.value_dim}, 3);
    dout = random({shape.batch * shape.q_len, shape.num_heads, shape.value_dim}, 4);
    out = like(dout);
    lse = arena.take("lse", DType::f32, {shape.batch, shape.num_heads, shape.q_len});
    reference->attention(shape, q, k, v, out, lse);
  }
  void SetUp() override { CADRE_SKIP_WITHOUT(fast); }
  Tensor random(std::initializer_list<int64_t> extents, uint64_t id) {
    return test::random_tensor(arena, DType::f32, extents, id);
  }
  Tensor like(const Tensor& t) { return arena.take("like", DType::f32, {t.dim(0), t.dim(1), t.dim(2)}); }  // NaN

  AttentionShape shape = std::get<1>(GetParam());
  std::unique_ptr<Kernels> reference = make_reference_kernels();
  test::FastBackEnd back_end = std::get<0>(GetParam());
  std::unique_ptr<Kernels> fast = back_end.make();
  Arena arena{Arena::Mode::real, true};
  Tensor q, k, v, dout, out, lse;

  // A score is a sum of head_dim products whose sizes add up to below 2 head_dim, times scale: its error moves a
  // probability by as much of itself. The sum over keys adds 70 u and exp 20 u.
  double probability_error() const {
    const auto dim = static_cast<double>(shape.head_dim);
    return back_end.slack * ((dim + 2) * u * 2 * dim * shape.scale + 90 * u);
  }
};

TEST_P(FastAttention, Forward) {
  const Tensor actual = like(dout);
  const Tensor actual_lse = arena.take("lse", DType::f32, {shape.batch, shape.num_heads, shape.q_len});
  fast->attention(shape, q, k, v, actual, actual_lse);
  fast->synchronize();
  // |v| < 5, and a sum of kv_len terms whose sizes add up to below 5
  const double sum_error = 5 * u * static_cast<double>(shape.kv_len);
  test::expect_near(test::values_of(actual), test::values_of(out), 5 * probability_error() + sum_error);
  test::expect_near(test::values_of(actual_lse), test::values_of(lse), probability_error() + 8 * u);

  const Tensor again = like(dout);
  fast->attention(shape, q, k, v, again, actual_lse);
  fast->synchronize();
  EXPECT_EQ(std::memcmp(again.raw(), actual.raw(), actual.bytes()), 0);
}

TEST_P(FastAttention, Backward) {
  const Tensor actual[] = {like(q), like(k), like(v)};
  const Tensor expected[] = {like(q), like(k), like(v)};
  fast->attention_grad(shape, q, k, v, out, lse, dout, actual[0], actual[1], actual[2]);
  fast->synchronize();
  reference->attention_grad(shape, q, k, v, out, lse, dout, expected[0], expected[1], expected[2]);
  // dout v^T and <dout, out> are sums of value_dim terms of about 1, their size below 10 sqrt(value_dim); ds is p of
  // that. dq sums over keys, whose p add up to 1; dk and dv over queries and the heads of a group, p at most 1 each.
  const double size = 10 * std::sqrt(static_cast<double>(std::max(shape.head_dim, shape.value_dim)));
  const double ds_error = shape.scale * 5 * size * (probability_error() + static_cast<double>(shape.head_dim) * u);
  const auto queries = static_cast<double>(shape.q_len * shape.num_heads / shape.num_kv_heads);
  test::expect_near(test::values_of(actual[0]), test::values_of(expected[0]), 2 * ds_error);
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t first = b * shape.kv_stride;
    for (const int which : {1, 2}) {
      test::expect_near(test::values_of(actual[which].rows(first, shape.kv_len)),
                        test::values_of(expected[which].rows(first, shape.kv_len)),
                        std::sqrt(queries) * 2 * (which == 1 ? ds_error : 5 * probability_error()) + queries * u);
    }
    for (const int which : {1, 2}) {
      for (const double value :
           test::values_of(actual[which].rows(first + shape.kv_len, shape.kv_stride - shape.kv_len))) {
        EXPECT_TRUE(std::isnan(value)) << "a row behind the sequence was written";
      }
    }
  }
}

// The values of latent attention are the first elements of its keys.
TEST_P(FastAttention, ValuesMayBePartOfTheKeys) {
  AttentionShape within = shape;
  within.value_dim = std::max<int64_t>(1, shape.head_dim / 2);
  const auto take = [&] {
    return arena.take("out", DType::f32, {shape.batch * shape.q_len, shape.num_heads, within.value_dim});
  };
  const Tensor values = arena.take("v", DType::f32, {k.dim(0), k.dim(1), within.value_dim});
  reference->copy_columns({k, 0, within.value_dim}, {values, 0, within.value_dim});
  for (const Kernels* kernels : {reference.get(), fast.get()}) {
    const Tensor outs[] = {take(), take()};
    kernels->attention(within, q, k, k, outs[0], lse);
    kernels->attention(within, q, k, values, outs[1], lse);
    kernels->synchronize();
    // The same additions, but strides decide how BLAS groups them.
    test::expect_near(test::values_of(outs[0]), test::values_of(outs[1]), 10 * static_cast<double>(shape.kv_len) * u);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FastAttention,
                         testing::Combine(test::each_fast_back_end(), testing::ValuesIn(kShapes)),
                         [](const auto& one) { return std::get<0>(one.param).name + std::to_string(one.index); });

}  // namespace
}  // namespace cadre::fast_attention_test
