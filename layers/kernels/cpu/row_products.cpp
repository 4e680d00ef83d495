// SPDX-License-Identifier: Apache-2.0
// Tiles of some rows by four columns, or four vectors of columns, of c. An element is the sum over blocks of kBlock terms,
// each added up lane by lane and then over the lanes (b transposed: both operands lie along k), or one sum in the order of k
// (b as it is). Neither depends on the tile that the element is in.
#include <algorithm>

#include "comm/base/check.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/gemm.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/row_products.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 ? 6 : 3;  // AVX-512 has 32 registers, what came before it 16
constexpr int kTileColumns = kLaneSums;
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

// Columns of b that lie along k, each from some term on: what dot_tile reads. load gives terms i .. i + lanes. kAtOnce: columns
// that one or two rows are multiplied with side by side.
struct FloatColumns {
  struct Column {
    const float* codes;
    template <class Lanes>
    HWY_INLINE Float load(Lanes lanes, size_t i) const {
      return lanes.load(codes + i);
    }
  };
  static constexpr int kAtOnce = 1;
  GemmOperand b;
  HWY_INLINE Column column(int64_t index, int64_t first) const { return {b.data + index * b.stride + first}; }
};

template <class Code>
HWY_INLINE auto load_codes(const Code* codes, WholeVector /*lanes*/) {
  return hn::LoadU(hn::Rebind<Code, FloatTag>(), codes);
}
template <class Code>
HWY_INLINE auto load_codes(const Code* codes, PartOfVector lanes) {
  HWY_ALIGN Code some[HWY_MAX_BYTES / sizeof(float)] = {};
  std::copy_n(codes, lanes.count, some);
  return hn::Load(hn::Rebind<Code, FloatTag>(), some);
}

struct Bf16Columns {
  struct Column {
    const uint16_t* codes;
    template <class Lanes>
    HWY_INLINE Float load(Lanes lanes, size_t i) const {
      const hn::RebindToUnsigned<FloatTag> wide;
      return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(hn::PromoteTo(wide, load_codes(codes + i, lanes))));
    }
  };
  static constexpr int kAtOnce = 1;
  const NarrowMatrix& b;
  HWY_INLINE Column column(int64_t index, int64_t first) const {
    return {b.codes.as<uint16_t>() + index * b.width + first};
  }
};

// E4M3: 1.m 2^(e - 7), or m 2^-9 where e is 0. Its bits in the place of those of a half, whose bias is larger by 8, stand for
// 2^-8 of it. There is no NaN among the codes of a weight. No vector spans two scales: there are at most 16 lanes, and a
// block of terms starts at a multiple of both.
struct Fp8Columns {
  struct Column {
    const int8_t* codes;
    const float* scales;
    template <class Lanes>
    HWY_INLINE Float load(Lanes lanes, size_t i) const {
#if HWY_TARGET == HWY_SCALAR
      return splat(from_fp8(static_cast<uint8_t>(load_codes(codes + i, lanes).raw)) * scales[i / kFp8TermsPerScale] /
                   kFp8OverHalf);
#else
      const hn::Rebind<int16_t, FloatTag> bits;
      const auto code = hn::ShiftLeft<7>(hn::PromoteTo(bits, load_codes(codes + i, lanes)));
      const auto half = hn::And(code, hn::Set(bits, static_cast<int16_t>(0xbfff)));  // the sign stands twice
      const Float value = hn::PromoteTo(FloatTag(), hn::BitCast(hn::Rebind<hwy::float16_t, FloatTag>(), half));
      return hn::Mul(value, splat(scales[i / kFp8TermsPerScale]));
#endif
    }
  };
  static constexpr int kAtOnce = 4;
  const NarrowMatrix& b;
  HWY_INLINE Column column(int64_t index, int64_t first) const {
    return {b.codes.as<int8_t>() + index * b.width + first,
            b.scales.as<float>() + index * b.scales_per_row() + first / kFp8TermsPerScale};
  }
};

// Terms [first, first + count) of four columns from `column` on, of the first Rows of `rows` rows from `row` on. Where fewer
// columns are left the last stands for those that are missing. AtOnce of them are read side by side.
template <int Rows, int AtOnce, class Columns>
HWY_INLINE void dot_tile(const RowGemm& gemm, const Columns& b_columns, int64_t row, int64_t rows, int64_t column,
                         int64_t first, int64_t count) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return dot_tile<Rows - 1, AtOnce>(gemm, b_columns, row, rows, column, first, count);
  }
  const int64_t columns = std::min<int64_t>(kTileColumns, gemm.shape.n - column);
  const float* a[Rows];
  for (int r = 0; r < Rows; ++r) a[r] = gemm.a_row(row + r) + first;
  Float sums[Rows][kTileColumns];
  for (int begin = 0; begin < kTileColumns; begin += AtOnce) {
    typename Columns::Column b[AtOnce];
    for (int n = 0; n < AtOnce; ++n) b[n] = b_columns.column(column + std::min<int64_t>(begin + n, columns - 1), first);
    Float acc[Rows][AtOnce];
    for (auto& vectors : acc) std::fill_n(vectors, AtOnce, hn::Zero(FloatTag()));
    [[maybe_unused]] const auto* next = b_columns.column(column + kTileColumns, first).codes;
    for_each_vector(static_cast<size_t>(count), [&](size_t i, auto lanes) HWY_ATTR {
      if constexpr (sizeof(*next) == 1 && Rows <= kFewRows) hwy::Prefetch(next + kTileColumns * i);
      Float x[Rows];
      for (int r = 0; r < Rows; ++r) x[r] = lanes.load(a[r] + i);
      for (int n = 0; n < AtOnce; ++n) {
        const Float w = b[n].load(lanes, i);
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
// The conversion of fp8 counts too: four rows are read side by side, and the next four fetched in the order of memory.
template <class Columns>
void dot_gemm(const RowGemm& gemm, const Columns& b) {
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
            dot_tile<kFewRows, Columns::kAtOnce>(gemm, b, row, m, column, first, count);
          } else {
            dot_tile<kTileRows, kTileColumns>(gemm, b, row, m - row, column, first, count);
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
  if (b.transposed) return dot_gemm(gemm, FloatColumns{b});
  sum_gemm(gemm);
}

// Columns [first, first + count) of b as floats, to[count, width].
template <class Columns>
void widen(const Columns& b, int64_t first, int64_t count, int64_t width, float* to) {
  for (int64_t column = first; column < first + count; ++column, to += width) {
    const auto from = b.column(column, 0);
    for_each_vector(static_cast<size_t>(width),
                    [&](size_t i, auto lanes) HWY_ATTR { lanes.store(from.load(lanes, i), to + i); });
  }
}

// The columns of others from one on.
template <class Columns>
struct Shifted {
  using Column = typename Columns::Column;
  static constexpr int kAtOnce = Columns::kAtOnce;
  Columns columns;
  int64_t by;
  HWY_INLINE Column column(int64_t index, int64_t term) const { return columns.column(by + index, term); }
};

// Columns [first, first + shape.n) of b. Many rows read them once, as floats in `room` [n, k]; null: they are read in place.
template <class Columns>
void narrow_gemm(const GemmShape& shape, const GemmOperand& a, const Columns& b, int64_t first, float* c,
                 int64_t c_stride, float* room) {
  if (room != nullptr) {
    widen(b, first, shape.n, shape.k, room);
    return dot_gemm({shape, a, {}, c, c_stride, 1.0F}, FloatColumns{{room, shape.k}});
  }
  dot_gemm({shape, a, {}, c, c_stride, 1.0F}, Shifted<Columns>{b, first});
}

void narrow_gemm_of(const GemmShape& shape, const GemmOperand& a, const NarrowMatrix& b, int64_t first, float* c,
                    int64_t c_stride, float* room) {
  switch (b.format) {
    case WeightFormat::fp32:
    case WeightFormat::int8: break;
    case WeightFormat::bf16: return narrow_gemm(shape, a, Bf16Columns{b}, first, c, c_stride, room);
    case WeightFormat::fp8: return narrow_gemm(shape, a, Fp8Columns{b}, first, c, c_stride, room);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(row_gemm_of);
HWY_EXPORT(narrow_gemm_of);

namespace {

// A part reads this much of b, which takes 20 us or so from memory: less is not worth waking a thread.
constexpr int64_t kPartElements = 1 << 16;
constexpr int64_t kPartColumns = 64;  // multiples of them

// Calls columns(first, end) for parts of b.
template <class Body>
void for_parts(const GemmShape& shape, const Body& columns) {
  const int64_t width = (kPartElements / shape.k / kPartColumns + 1) * kPartColumns;
  const auto part = [&](int64_t i) { columns(i * width, std::min(shape.n, (i + 1) * width)); };
  const int64_t parts = (shape.n + width - 1) / width;
  if (shape.threads != nullptr) return shape.threads->run(parts, part);
  for (int64_t i = 0; i < parts; ++i) part(i);
}

}  // namespace

void row_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
              float alpha) {
  CADRE_ASSERT(!a.transposed);
  if (shape.m == 0 || shape.n == 0) return;
  if (shape.k == 0) {
    for (int64_t row = 0; row < shape.m; ++row) std::fill_n(c + row * c_stride, shape.n, 0.0F);
    return;
  }
  for_parts(shape, [&](int64_t first, int64_t end) {
    const float* b_data = b.data + (b.transposed ? first * b.stride : first);
    HWY_DYNAMIC_DISPATCH(row_gemm_of)
    ({shape.m, end - first, shape.k}, a, {b_data, b.stride, b.transposed}, c + first, c_stride, alpha);
  });
}

void row_gemm(const GemmShape& shape, const GemmOperand& a, const NarrowMatrix& b, float* c, int64_t c_stride) {
  CADRE_ASSERT(!a.transposed && b.format != WeightFormat::fp32);
  if (b.format == WeightFormat::int8) {
    const Int8Rows rows(a, shape.m, shape.k);
    for_parts(shape, [&](int64_t first, int64_t end) {
      row_gemm({shape.m, end - first, shape.k}, rows, b, first, c + first, c_stride);
    });
    return;
  }
  constexpr int64_t kFewRows = 6;  // widening costs as much as a product with some rows
  for_parts(shape, [&](int64_t first, int64_t end) {
    float* room = shape.m <= kFewRows ? nullptr : cpu::part_scratch(static_cast<size_t>((end - first) * shape.k));
    HWY_DYNAMIC_DISPATCH(narrow_gemm_of)({shape.m, end - first, shape.k}, a, b, first, c + first, c_stride, room);
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
