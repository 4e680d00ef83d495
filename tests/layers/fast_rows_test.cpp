// SPDX-License-Identifier: Apache-2.0
// The kernels of the fast back ends that choose, move or turn rows, against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "layers/nn/attention.hpp"
#include "tests/support/fast_kernels.hpp"

namespace cadre::fast_rows_test {
namespace {

using FastKernels = test::FastKernels;
using test::kSumError;
using test::kWidths;
using test::u;

TEST_P(FastKernels, TopK) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  for (const int64_t experts : {int64_t{1}, int64_t{5}, int64_t{16}, int64_t{67}, int64_t{256}}) {
    const Tensor scores = random({50, experts});
    for (int64_t i = 0; i < scores.numel(); ++i) {  // coarse values make ties, every seventh expert is masked
      float& score = scores.data<float>()[i];
      score = i % 7 == 3 ? -inf : std::round(4.0F * score) / 4.0F;
    }
    const Tensor bias = random({experts});
    for (const int64_t chosen : {int64_t{1}, std::min<int64_t>(8, experts), experts}) {
      const Tensor ids[] = {arena.take("ids", DType::i32, {50, chosen}), arena.take("ids", DType::i32, {50, chosen})};
      for (const Tensor& offset : {Tensor(), bias}) {
        fast->top_k(scores, offset, ids[0]);
        reference->top_k(scores, offset, ids[1]);
        EXPECT_EQ(test::values_of(ids[0]), test::values_of(ids[1])) << experts << " experts, top " << chosen;
      }
    }
  }
}

TEST_P(FastKernels, TopKRejectsNaN) {
  const Tensor scores = random({3, 21});
  const Tensor ids = arena.take("ids", DType::i32, {3, 2});
  for (const int64_t bad : {int64_t{0}, int64_t{20 + 21}, int64_t{62}}) {
    const float kept = std::exchange(scores.data<float>()[bad], std::numeric_limits<float>::quiet_NaN());
    try {
      fast->top_k(scores, Tensor(), ids);
      FAIL() << "no error for a NaN at " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::numerics);
    }
    scores.data<float>()[bad] = kept;
  }
  fast->top_k(scores, Tensor(), ids);
}

TEST_P(FastKernels, MovingRows) {
  for (const int64_t width : kWidths) {
    const Tensor src = random({11, width});
    const Tensor index = ints({3, 3, 0, 10, 7, 5, 1});
    const Tensor weight = random({7});
    for (const Tensor& factor : {Tensor(), weight}) {
      const Tensor rows[] = {out({7, width}), out({7, width})};
      fast->gather_rows(src, index, factor, rows[0]);
      reference->gather_rows(src, index, factor, rows[1]);
      expect_same_bits(rows[0], rows[1]);

      const Tensor offsets = ints({0, 0, 2, 7, 7});  // two empty ranges
      const Tensor sums[] = {out({4, width}), out({4, width})};
      fast->sum_rows(src, offsets, index, factor, sums[0]);
      reference->sum_rows(src, offsets, index, factor, sums[1]);
      expect_absolute(sums[0], sums[1], 5 * 5 * 12 * u);  // 5 terms below 12, 5 additions
    }
    const Tensor b = random({4, width});
    const Tensor b_index = ints({0, 1, 2, 3, 0, 1, 2});
    const Tensor dots[] = {out({7}), out({7})};
    fast->dot_rows(src, index, b, b_index, dots[0]);
    reference->dot_rows(src, index, b, b_index, dots[1]);
    expect_absolute(dots[0], dots[1], kSumError * static_cast<double>(width));  // mean |a b| below 1
  }
}

// Rows may start at any float and lie any number of floats apart.
TEST_P(FastKernels, MovingRowsThatLieApart) {
  constexpr int64_t kWidth = 64;
  const Tensor index = ints({1, 4, 0, 4});
  const Tensor offsets = ints({0, 1, 4});
  for (const int64_t gap : {int64_t{0}, int64_t{3}, int64_t{4}}) {
    for (const int64_t first : {int64_t{0}, int64_t{1}}) {
      const Tensor memory = random({5 * (kWidth + gap) + 4});
      const Rows src(memory.raw() + 4 * first, 4 * (kWidth + gap), DType::f32, kWidth);
      const Tensor rows[] = {out({4, kWidth}), out({4, kWidth})};
      fast->gather_rows(src, index, Tensor(), rows[0]);
      reference->gather_rows(src, index, Tensor(), rows[1]);
      expect_same_bits(rows[0], rows[1]);
      const Tensor sums[] = {out({2, kWidth}), out({2, kWidth})};
      fast->sum_rows(src, offsets, index, Tensor(), sums[0]);
      reference->sum_rows(src, offsets, index, Tensor(), sums[1]);
      expect_absolute(sums[0], sums[1], 3 * 3 * 12 * u);
      const Tensor dots[] = {out({4}), out({4})};
      fast->dot_rows(src, index, rows[1], ints({0, 1, 2, 3}), dots[0]);
      reference->dot_rows(src, index, rows[1], ints({0, 1, 2, 3}), dots[1]);
      expect_relative(dots[0], dots[1], kSumError * static_cast<double>(kWidth));  // of squares
    }
  }
}

TEST_P(FastKernels, Embedding) {
  for (const int64_t width : {int64_t{37}, int64_t{40}}) {
    const Tensor table = random({13, width});
    const Tensor ids = ints({5, 12, 5, 0, 5});
    const Tensor rows[] = {out({5, width}), out({5, width})};
    fast->embedding(ids, table, rows[0]);
    reference->embedding(ids, table, rows[1]);
    expect_same_bits(rows[0], rows[1]);
    const Tensor dy = random({5, width});
    const Tensor grads[] = {copy(table).reshape({13, width}), copy(table).reshape({13, width})};
    fast->embedding_grad(ids, dy, grads[0]);
    reference->embedding_grad(ids, dy, grads[1]);
    expect_same_bits(grads[0], grads[1]);  // the same additions in the same order
  }
}

// Sine and cosine are rounded once, then two products and an addition: 4u of |low| + |high| < 10.
TEST_P(FastKernels, Rope) {
  for (const int64_t head_dim : {int64_t{2}, int64_t{6}, int64_t{34}, int64_t{128}}) {
    const Tensor positions = ints({0, 1, 77, 4095, 163'839});
    for (const RopeDirection direction : {RopeDirection::forward, RopeDirection::backward}) {
      for (const RopeLayout layout : {RopeLayout::halves, RopeLayout::interleaved}) {
        Rope rope = plain_rope(10'000.0, head_dim, layout);
        rope.first = 3;
        rope.factor = 0.9;
        const Tensor actual = random({5, 3, head_dim + 4});
        const Tensor expected = copy(actual).reshape({5, 3, head_dim + 4});
        fast->rope(actual, positions, rope, direction);
        reference->rope(expected, positions, rope, direction);
        expect_absolute(actual, expected, 40 * u);
      }
    }
  }
}

TEST_P(FastKernels, ColumnsAndHeads) {
  for (const int64_t num_tokens : {int64_t{0}, int64_t{1}, int64_t{7}}) {
    const Tensor rows = random({num_tokens, 1, 11});
    const Tensor heads = random({num_tokens, 4, 9});
    const Tensor same_heads = copy(heads).reshape({num_tokens, 4, 9});
    fast->copy_columns({rows, 2, 5}, {heads, 1, 5});
    reference->copy_columns({rows, 2, 5}, {same_heads, 1, 5});
    expect_same_bits(heads, same_heads);
    const Tensor same_rows = copy(rows).reshape({num_tokens, 1, 11});
    fast->sum_columns({heads, 3, 6}, {rows, 5, 6});
    reference->sum_columns({heads, 3, 6}, {same_rows, 5, 6});
    expect_absolute(rows, same_rows, 4 * 20 * u);  // three additions of values below 5

    const Tensor weight = random({4 * 8, 9});
    const HeadRows head_rows{weight, 4, 3, 5};
    const Tensor y[] = {random({num_tokens, 4, 5}), random({num_tokens, 4, 5})};
    fast->head_linear(heads, head_rows, y[0]);
    reference->head_linear(heads, head_rows, y[1]);
    expect_absolute(y[0], y[1], 9 * 100 * u);  // sums of 9 products whose sizes add up to below 100
    const Tensor back = random({num_tokens, 4, 10});
    const Tensor same_back = copy(back).reshape({num_tokens, 4, 10});
    fast->head_linear_transposed(y[1], head_rows, back);
    reference->head_linear_transposed(y[1], head_rows, same_back);
    expect_absolute(back, same_back, 5 * 300 * u);  // sums of 5 products of values below 20 and 5
  }
}

// Four columns, that lie on 16 bytes or not.
TEST_P(FastKernels, FourColumns) {
  for (const int64_t width : {int64_t{8}, int64_t{9}}) {
    for (const int64_t first : {int64_t{0}, int64_t{1}, int64_t{4}}) {
      const Tensor rows = random({5, 1, width});
      const Tensor same_rows = copy(rows).reshape({5, 1, width});
      const Tensor heads = random({5, 3, 8});
      const Tensor same_heads = copy(heads).reshape({5, 3, 8});
      fast->copy_columns({rows, first, 4}, {heads, 4, 4});
      reference->copy_columns({rows, first, 4}, {same_heads, 4, 4});
      expect_same_bits(heads, same_heads);
      fast->sum_columns({heads, 0, 4}, {rows, first, 4});
      reference->sum_columns({heads, 0, 4}, {same_rows, first, 4});
      expect_absolute(rows, same_rows, 3 * 15 * u);  // two additions of values below 5
    }
  }
}

INSTANTIATE_TEST_SUITE_P(BackEnds, FastKernels, test::each_fast_back_end(), test::name_of_back_end);

}  // namespace
}  // namespace cadre::fast_rows_test
