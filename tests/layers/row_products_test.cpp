// SPDX-License-Identifier: Apache-2.0
// What generation stands on: the bits of a row do not depend on the rows beside it, in products with weights that do not
// train and in the attention of a few queries.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::row_products_test {
namespace {

constexpr int64_t kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 12, 13, 64, 65};
constexpr int64_t kMostRows = 65;

class RowProducts : public testing::Test {
 protected:
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }
  Tensor out(std::initializer_list<int64_t> shape) { return arena.take("out", DType::f32, shape); }  // NaN
  static bool same_bits(const Tensor& a, const Tensor& b) { return std::memcmp(a.raw(), b.raw(), a.bytes()) == 0; }

  Arena arena{Arena::Mode::real, true};
  uint64_t next_id = 0;
};

struct Extents {
  int64_t n, k;
};
constexpr Extents kExtents[] = {{1, 1}, {5, 3}, {70, 37}, {64, 128}, {33, 1023}, {9, 2100}, {3, 0}};

// Of sums of k products of N(0, 1) numbers in fp32, in any order: (k + 1) u times the sum of their sizes, below 2 k; factor
// and block sums add a rounding each.
double bound(int64_t k) { return 0x1p-24 * static_cast<double>(k + 5) * 2.0 * static_cast<double>(k + 5); }

TEST_F(RowProducts, EqualSumsInFp64) {
  for (const auto& [n, k] : kExtents) {
    for (const bool transposed : {false, true}) {
      SCOPED_TRACE(testing::Message() << "n " << n << " k " << k << " transposed " << transposed);
      const int64_t a_stride = k + 3;
      const int64_t b_stride = (transposed ? k : n) + 2;
      const Tensor a = random({kMostRows, a_stride});
      const Tensor b = random({transposed ? n : k, b_stride});
      const Tensor c = out({kMostRows, n + 1});
      row_gemm({kMostRows, n, k}, {a.data<float>(), a_stride}, {b.data<float>(), b_stride, transposed}, c.data<float>(),
               n + 1, 0.5F);
      for (int64_t row = 0; row < kMostRows; ++row) {
        for (int64_t column = 0; column < n; ++column) {
          double sum = 0.0;
          for (int64_t j = 0; j < k; ++j) {
            const int64_t at = transposed ? column * b_stride + j : j * b_stride + column;
            sum += double{a.data<float>()[row * a_stride + j]} * double{b.data<float>()[at]};
          }
          ASSERT_NEAR(c.data<float>()[row * (n + 1) + column], 0.5 * sum, bound(k)) << row << " " << column;
        }
        ASSERT_TRUE(std::isnan(c.data<float>()[row * (n + 1) + n])) << "a column behind the last was written";
      }
    }
  }
}

TEST_F(RowProducts, AnElementDoesNotDependOnTheOtherRowsAndColumns) {
  for (const auto& [n, k] : kExtents) {
    for (const bool transposed : {false, true}) {
      const int64_t b_stride = transposed ? k : n;
      const Tensor a = random({kMostRows, k});
      const Tensor b = random({transposed ? n : k, b_stride});
      const Tensor whole = out({kMostRows, n});
      const GemmOperand b_operand = {b.data<float>(), b_stride, transposed};
      row_gemm({kMostRows, n, k}, {a.data<float>(), k}, b_operand, whole.data<float>(), n);
      for (const int64_t rows : kRowCounts) {
        const Tensor part = out({rows, n});
        const int64_t first = kMostRows - rows;
        row_gemm({rows, n, k}, {a.data<float>() + first * k, k}, b_operand, part.data<float>(), n);
        EXPECT_TRUE(same_bits(part, whole.rows(first, rows))) << rows << " rows, n " << n << " k " << k;
      }
      const Tensor column = out({1, 1});
      const float* last = b.data<float>() + (transposed ? (n - 1) * b_stride : n - 1);
      row_gemm({1, 1, k}, {a.data<float>(), k}, {last, b_stride, transposed}, column.data<float>(), 1);
      EXPECT_EQ(*column.data<float>(), whole.data<float>()[n - 1]) << "n " << n << " k " << k;
    }
  }
}

// Of weights that do not train, in every precision.
TEST_F(RowProducts, RowsOfLinearAreIndependent) {
  for (const auto& [n, k] : {Extents{70, 300}, Extents{33, 5000}}) {
    for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp8, Precision::fp8_ue8m0}) {
      const auto kernels = make_cpu_kernels(precision);
      const Tensor x = random({kMostRows, k});
      Parameter weight;
      weight.value = random({n, k});
      const Tensor whole = out({kMostRows, n});
      kernels->linear(x, weight, whole);
      for (const int64_t rows : kRowCounts) {
        const Tensor part = out({rows, n});
        const int64_t first = kMostRows - rows;
        kernels->linear(x.rows(first, rows), weight, part);
        EXPECT_TRUE(same_bits(part, whole.rows(first, rows)))
            << rows << " rows, n " << n << " k " << k << " precision " << static_cast<int>(precision);
      }
    }
  }
}

// On any CPU: which bits are wanted says which product makes them.
TEST_F(RowProducts, AWeightThatTrainsHasTheBitsOfBlas) {
  constexpr int64_t kOut = 70;
  constexpr int64_t kIn = 300;
  const Tensor x = random({kMostRows, kIn});
  Parameter weight;
  weight.value = random({kOut, kIn});
  const auto product = [&](bool by_rows, int64_t rows) {
    const Tensor y = out({rows, kOut});
    const GemmOperand columns = {weight.value.data<float>(), kIn, true};
    if (by_rows) {
      row_gemm({rows, kOut, kIn}, {x.data<float>(), kIn}, columns, y.data<float>(), kOut);
    } else {
      gemm(GemmLibrary::openblas, {rows, kOut, kIn}, {x.data<float>(), kIn}, columns, y.data<float>(), kOut);
    }
    return y;
  };
  const auto linear = [&](RowBits bits, int64_t rows) {
    const Tensor y = out({rows, kOut});
    make_cpu_kernels(Precision::fp32, {.bits = bits})->linear(x.rows(0, rows), weight, y);
    return y;
  };
  for (const int64_t rows : {int64_t{1}, int64_t{5}, kMostRows}) {
    weight.grad = {};
    EXPECT_TRUE(same_bits(linear(RowBits::independent, rows), product(/*by_rows=*/true, rows))) << rows;
    EXPECT_TRUE(same_bits(linear(RowBits::as_in_training, rows), product(/*by_rows=*/false, rows))) << rows;
    weight.grad = out({kOut, kIn});
    EXPECT_TRUE(same_bits(linear(RowBits::independent, rows), product(/*by_rows=*/false, rows))) << rows;
  }
}

struct Heads {
  int64_t heads, kv_heads, dim, value_dim;
};

// Queries of one call, of several, and alone.
TEST_F(RowProducts, AFewQueriesAttendIndependently) {
  constexpr int64_t kBatch = 2;
  constexpr int64_t kQueries = 5;
  constexpr int64_t kKeys = 83;
  const auto kernels = make_cpu_kernels(Precision::fp32);
  for (const auto& [heads, kv_heads, dim, value_dim] :
       {Heads{4, 4, 24, 24}, Heads{6, 2, 16, 16}, Heads{70, 1, 20, 13}}) {
    SCOPED_TRACE(heads);
    const Tensor q = random({kBatch * kQueries, heads, dim});
    const Tensor k = random({kBatch * kKeys, kv_heads, dim});
    const Tensor v = random({kBatch * kKeys, kv_heads, value_dim});
    const AttentionShape shape{kBatch, kQueries, kKeys, kKeys, heads, kv_heads, dim, value_dim, 0.3};
    const Tensor whole = out({kBatch * kQueries, heads, value_dim});
    const Tensor whole_lse = out({kBatch, heads, kQueries});
    kernels->attention(shape, q, k, v, whole, whole_lse);
    for (int64_t row = 0; row < kBatch * kQueries; ++row) {
      AttentionShape alone = shape;
      alone.batch = alone.q_len = 1;
      alone.kv_len = kKeys - kQueries + row % kQueries + 1;
      const int64_t first_key = row / kQueries * kKeys;
      const Tensor part = out({1, heads, value_dim});
      const Tensor lse = out({1, heads, 1});
      kernels->attention(alone, q.rows(row, 1), k.rows(first_key, kKeys), v.rows(first_key, kKeys), part, lse);
      EXPECT_TRUE(same_bits(part, whole.rows(row, 1))) << "query " << row;
      for (int64_t head = 0; head < heads; ++head) {
        EXPECT_EQ(lse.data<float>()[head],
                  whole_lse.data<float>()[(row / kQueries * heads + head) * kQueries + row % kQueries]);
      }
    }
  }
}

}  // namespace
}  // namespace cadre::row_products_test
