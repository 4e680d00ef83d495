// SPDX-License-Identifier: Apache-2.0
// Tiles of some rows by four columns, or four vectors of columns, of c. An element is the sum over blocks of kBlock terms,
// each added up lane by lane and then over the lanes (b transposed: both operands lie along k), or one sum in the order of k
// (b as it is). Neither depends on the tile that the element is in.
#include <algorithm>

#include "comm/base/check.hpp"
#include "layers/kernels/cpu/gemm.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/row_products.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 ? 6 : 3;  // AVX-512 has 32 registers, what came before it 16
constexpr int kTileColumns = 4;
constexpr int kFewRows = 2;
constexpr int64_t kFirstCache = 2048;  // elements of them that leave room for b
constexpr int64_t kBlock = 4096;       // terms
constexpr int64_t kPanel = 16;         // columns whose block of b stays in the second cache while many rows pass

struct RowGemm {
  GemmShape shape;
  GemmOperand a;
  GemmOperand b;
  float* c;
  int64_t c_stride;
  float alpha;

  const float* a_row(int64_t row) const { return a.data + row * a.stride; }
  const float* b_row(int64_t row) const { return b.data + row * b.stride; }
};

// The sums of the lanes of four vectors, times a factor, go to or are added to the first `count` of four floats. Through the
// same operations whatever count is.
HWY_INLINE void add_lanes(const Float* vectors, float factor, bool adds, float* to, int64_t count) {
  float old[kTileColumns] = {};
  float sums[kTileColumns];
  if (adds) std::copy_n(to, count, old);
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < kTileColumns; ++i) sums[i] = factor * hn::GetLane(vectors[i]) + old[i];
#else
  const FloatTag tag;
  const hn::Repartition<double, FloatTag> pairs;
  const hn::Full128<float> four;
  const auto merge = [&](Float x, Float y) HWY_ATTR {
    return hn::BitCast(pairs, hn::Add(hn::InterleaveLower(tag, x, y), hn::InterleaveUpper(tag, x, y)));
  };
  const auto first = merge(vectors[0], vectors[1]);
  const auto second = merge(vectors[2], vectors[3]);
  HWY_ALIGN float blocks[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(hn::Add(hn::BitCast(tag, hn::InterleaveLower(pairs, first, second)),
                    hn::BitCast(tag, hn::InterleaveUpper(pairs, first, second))),
            tag, blocks);
  auto sum = hn::Load(four, blocks);
  for (size_t block = 4; block < hn::Lanes(tag); block += 4) sum = hn::Add(sum, hn::Load(four, blocks + block));
  hn::StoreU(hn::MulAdd(hn::Set(four, factor), sum, hn::LoadU(four, old)), four, sums);
#endif
  std::copy_n(sums, count, to);
}

// Terms [first, first + count) of four columns from `column` on, of the first Rows of `rows` rows from `row` on. Where fewer
// columns are left the last stands for those that are missing. AtOnce of them are read side by side.
template <int Rows, int AtOnce>
HWY_INLINE void dot_tile(const RowGemm& gemm, int64_t row, int64_t rows, int64_t column, int64_t first, int64_t count) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return dot_tile<Rows - 1, AtOnce>(gemm, row, rows, column, first, count);
  }
  const int64_t columns = std::min<int64_t>(kTileColumns, gemm.shape.n - column);
  const float* a[Rows];
  for (int r = 0; r < Rows; ++r) a[r] = gemm.a_row(row + r) + first;
  Float sums[Rows][kTileColumns];
  for (int begin = 0; begin < kTileColumns; begin += AtOnce) {
    const float* b[AtOnce];
    for (int n = 0; n < AtOnce; ++n) b[n] = gemm.b_row(column + std::min<int64_t>(begin + n, columns - 1)) + first;
    Float acc[Rows][AtOnce];
    for (auto& vectors : acc) std::fill_n(vectors, AtOnce, hn::Zero(FloatTag()));
    for_each_vector(static_cast<size_t>(count), [&](size_t i, auto lanes) HWY_ATTR {
      Float x[Rows];
      for (int r = 0; r < Rows; ++r) x[r] = lanes.load(a[r] + i);
      for (int n = 0; n < AtOnce; ++n) {
        const Float w = lanes.load(b[n] + i);
        for (int r = 0; r < Rows; ++r) acc[r][n] = hn::MulAdd(x[r], w, acc[r][n]);
      }
    });
    for (int r = 0; r < Rows; ++r) {
      for (int n = 0; n < AtOnce; ++n) sums[r][begin + n] = acc[r][n];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    add_lanes(sums[r], gemm.alpha, first > 0, gemm.c + (row + r) * gemm.c_stride + column, columns);
  }
}

// One or two rows wait for memory, and while they stay in the first cache prefetchers follow one row of b after the other
// best. Else the arithmetic counts: four rows of b side by side, in blocks that stay in the second cache while all rows pass.
void dot_gemm(const RowGemm& gemm) {
  const auto [m, n, k, _] = gemm.shape;
  const bool one_by_one = m <= kFewRows && m * k <= kFirstCache;
  const int64_t panel = m <= kTileRows ? kTileColumns : kPanel;
  for (int64_t begin = 0; begin < n; begin += panel) {
    const int64_t end = std::min(n, begin + panel);
    for (int64_t first = 0; first < k; first += kBlock) {
      const int64_t count = std::min(kBlock, k - first);
      for (int64_t row = 0; row < m; row += kTileRows) {
        for (int64_t column = begin; column < end; column += kTileColumns) {
          if (one_by_one) {
            dot_tile<kFewRows, 1>(gemm, row, m, column, first, count);
          } else {
            dot_tile<kTileRows, kTileColumns>(gemm, row, m - row, column, first, count);
          }
        }
      }
    }
  }
}

// Vectors v = 0 .. Vectors of columns from `column` on, in the first Rows of the rows from `row` on.
template <int Rows, int Vectors, class Lanes>
HWY_INLINE void sum_tile(const RowGemm& gemm, int64_t row, int64_t rows, int64_t column, Lanes lanes) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return sum_tile<Rows - 1, Vectors>(gemm, row, rows, column, lanes);
  }
  const auto width = static_cast<int64_t>(hn::Lanes(FloatTag()));
  Float acc[Rows][Vectors];
  for (auto& vectors : acc) std::fill_n(vectors, Vectors, hn::Zero(FloatTag()));
  for (int64_t j = 0; j < gemm.shape.k; ++j) {
    const float* b = gemm.b_row(j) + column;
    for (int v = 0; v < Vectors; ++v) {
      const Float w = lanes.load(b + v * width);
      for (int r = 0; r < Rows; ++r) acc[r][v] = hn::MulAdd(splat(gemm.a_row(row + r)[j]), w, acc[r][v]);
    }
  }
  const Float scale = splat(gemm.alpha);
  for (int r = 0; r < Rows; ++r) {
    float* out = gemm.c + (row + r) * gemm.c_stride + column;
    for (int v = 0; v < Vectors; ++v) lanes.store(hn::Mul(scale, acc[r][v]), out + v * width);
  }
}

void sum_gemm(const RowGemm& gemm) {
  const auto [m, n, k, _] = gemm.shape;
  const auto width = static_cast<int64_t>(hn::Lanes(FloatTag()));
  const auto all_rows = [&](auto tile) HWY_ATTR {
    for (int64_t row = 0; row < m; row += kTileRows) tile(row);
  };
  int64_t column = 0;
  for (; column + 4 * width <= n; column += 4 * width) {
    all_rows([&](int64_t row) HWY_ATTR { sum_tile<kTileRows, 4>(gemm, row, m - row, column, WholeVector{}); });
  }
  for (; column + width <= n; column += width) {
    all_rows([&](int64_t row) HWY_ATTR { sum_tile<kTileRows, 1>(gemm, row, m - row, column, WholeVector{}); });
  }
  if (column == n) return;
  const PartOfVector rest{static_cast<size_t>(n - column)};
  all_rows([&](int64_t row) HWY_ATTR { sum_tile<kTileRows, 1>(gemm, row, m - row, column, rest); });
}

void row_gemm_of(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
                 float alpha) {
  const RowGemm gemm = {shape, a, b, c, c_stride, alpha};
  if (b.transposed) return dot_gemm(gemm);
  sum_gemm(gemm);
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(row_gemm_of);

namespace {

// A part reads this much of b, which takes 20 us or so from memory: less is not worth waking a thread.
constexpr int64_t kPartElements = 1 << 16;
constexpr int64_t kPartColumns = 64;  // multiples of them

}  // namespace

void row_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
              float alpha) {
  CADRE_ASSERT(!a.transposed);
  if (shape.m == 0 || shape.n == 0) return;
  if (shape.k == 0) {
    for (int64_t row = 0; row < shape.m; ++row) std::fill_n(c + row * c_stride, shape.n, 0.0F);
    return;
  }
  const auto columns = [&](int64_t first, int64_t end) {
    const float* b_data = b.data + (b.transposed ? first * b.stride : first);
    HWY_DYNAMIC_DISPATCH(row_gemm_of)
    ({shape.m, end - first, shape.k}, a, {b_data, b.stride, b.transposed}, c + first, c_stride, alpha);
  };
  if (shape.threads == nullptr) return columns(0, shape.n);
  const int64_t width = (kPartElements / shape.k / kPartColumns + 1) * kPartColumns;
  shape.threads->run((shape.n + width - 1) / width,
                     [&](int64_t part) { columns(part * width, std::min(shape.n, (part + 1) * width)); });
}

}  // namespace cadre
#endif  // HWY_ONCE
