// SPDX-License-Identifier: Apache-2.0
// y = x W^T of a weight in int8. A row of x becomes integers of 15 bits and a sign with one factor, an error of at most 2^-16 of
// its largest element, small beside that of the codes. Products with the 32 codes of a scale are added as integers, without
// an error; these sums, times their scales, as fp32. The same operations for any number of rows and columns.
#include <algorithm>
#include <bit>
#include <limits>

#include "comm/base/check.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/gemm.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/int8_products.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

constexpr int64_t kTerms = kInt8TermsPerScale;
constexpr int kInt8TileRows = HWY_TARGET <= HWY_AVX3 ? 6 : 3;  // AVX-512 has 32 registers, what came before it 16
constexpr int kInt8Columns = 4;
constexpr int kInt8FewRows = 2;
constexpr int64_t kInt8Block = 4096;  // terms
constexpr int64_t kInt8Panel = 16;    // columns whose block of codes stays in the second cache while many rows pass

struct Int8Gemm {
  GemmShape shape;
  const Int8Rows& a;
  const NarrowMatrix& b;
  int64_t first_column;
  float* c;
  int64_t c_stride;
};

// Sums of 32 products in as many lanes as a vector of floats has.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE Float sum_terms(const int16_t* x, const int8_t* codes) {
  int32_t sum = 0;
  for (int64_t i = 0; i < kTerms; ++i) sum += int32_t{x[i]} * codes[i];
  return splat(static_cast<float>(sum));
}
#else
HWY_INLINE Float sum_terms(const int16_t* x, const int8_t* codes) {
  const hn::RebindToSigned<FloatTag> wide;
  const hn::Repartition<int16_t, FloatTag> tag;
  auto sum = hn::Zero(wide);
  auto unused = hn::Zero(wide);
  for (size_t i = 0; i < kTerms; i += hn::Lanes(tag)) {
    const auto w = hn::PromoteTo(tag, hn::LoadU(hn::Rebind<int8_t, decltype(tag)>(), codes + i));
    sum = hn::ReorderWidenMulAccumulate(wide, hn::LoadU(tag, x + i), w, sum, unused);
  }
  return hn::ConvertTo(FloatTag(), hn::Add(sum, unused));
}
#endif

// Terms [first, first + count) of four columns from `column` on, of the first Rows of `rows` rows from `row` on. Where fewer
// columns are left the last stands for those that are missing. AtOnce of them are read side by side.
template <int Rows, int AtOnce>
HWY_INLINE void int8_tile(const Int8Gemm& gemm, int64_t row, int64_t rows, int64_t column, int64_t first,
                          int64_t count) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return int8_tile<Rows - 1, AtOnce>(gemm, row, rows, column, first, count);
  }
  const int64_t columns = std::min<int64_t>(kInt8Columns, gemm.shape.n - column);
  const int64_t whole = count / kTerms * kTerms;
  const int16_t* x = gemm.a.rows + row * gemm.a.padded_width + first;
  Float sums[Rows][kInt8Columns];
  for (int begin = 0; begin < kInt8Columns; begin += AtOnce) {
    const int8_t* codes[AtOnce];
    const float* scales[AtOnce];
    for (int n = 0; n < AtOnce; ++n) {
      const int64_t index = gemm.first_column + column + std::min<int64_t>(begin + n, columns - 1);
      codes[n] = gemm.b.codes.as<int8_t>() + index * gemm.b.width + first;
      scales[n] = gemm.b.scales.as<float>() + index * gemm.b.scales_per_row() + first / kTerms;
    }
    Float acc[Rows][AtOnce];
    for (auto& vectors : acc) std::fill_n(vectors, AtOnce, hn::Zero(FloatTag()));
    for (int64_t i = 0; i < whole; i += kTerms) {
      for (int n = 0; n < AtOnce; ++n) {
        const Float scale = splat(scales[n][i / kTerms]);
        for (int r = 0; r < Rows; ++r) {
          acc[r][n] = hn::MulAdd(sum_terms(x + r * gemm.a.padded_width + i, codes[n] + i), scale, acc[r][n]);
        }
      }
    }
    for (int n = 0; n < AtOnce && whole < count; ++n) {
      int8_t rest[kTerms] = {};
      std::copy_n(codes[n] + whole, count - whole, rest);
      const Float scale = splat(scales[n][whole / kTerms]);
      for (int r = 0; r < Rows; ++r) {
        acc[r][n] = hn::MulAdd(sum_terms(x + r * gemm.a.padded_width + whole, rest), scale, acc[r][n]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int n = 0; n < AtOnce; ++n) sums[r][begin + n] = acc[r][n];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    add_lanes(sums[r], gemm.a.factors[row + r], first > 0, gemm.c + (row + r) * gemm.c_stride + column, columns);
  }
}

// One or two rows wait for memory: prefetchers follow one row of codes after the other best. Else four of them side by side,
// in blocks that stay in the second cache while all rows pass.
void int8_gemm_of(const GemmShape& shape, const Int8Rows& a, const NarrowMatrix& b, int64_t first_column, float* c,
                  int64_t c_stride) {
  const Int8Gemm gemm = {shape, a, b, first_column, c, c_stride};
  const auto [m, n, k, _] = shape;
  const int64_t panel = m <= kInt8TileRows ? kInt8Columns : kInt8Panel;
  for (int64_t begin = 0; begin < n; begin += panel) {
    const int64_t end = std::min(n, begin + panel);
    for (int64_t first = 0; first < k; first += kInt8Block) {
      const int64_t count = std::min(kInt8Block, k - first);
      for (int64_t row = 0; row < m; row += kInt8TileRows) {
        for (int64_t column = begin; column < end; column += kInt8Columns) {
          if (m <= kInt8FewRows) {
            int8_tile<kInt8FewRows, 1>(gemm, row, m, column, first, count);
          } else {
            int8_tile<kInt8TileRows, kInt8Columns>(gemm, row, m - row, column, first, count);
          }
        }
      }
    }
  }
}

// to[i] = values[i] inverse, to the nearest integer. Multiples of 32 are written, zeros behind `count`.
void to_integers(const float* values, int64_t count, float inverse, int16_t* to) {
  const Float scale = splat(inverse);
  const hn::Rebind<int16_t, FloatTag> tag;
  const auto lanes_of_vector = static_cast<int64_t>(hn::Lanes(FloatTag()));
  for (int64_t i = 0; i < (count + kTerms - 1) / kTerms * kTerms; i += lanes_of_vector) {
    Float value = hn::Zero(FloatTag());
    if (i + lanes_of_vector <= count) {
      value = WholeVector{}.load(values + i);
    } else if (i < count) {
      value = PartOfVector{static_cast<size_t>(count - i)}.load(values + i);
    }
    hn::StoreU(hn::DemoteTo(tag, hn::NearestInt(hn::Mul(scale, value))), tag, to + i);
  }
}

// The largest magnitude as bits: they are ordered like the numbers, with what is not finite above all.
uint32_t largest_bits(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffU);
  return largest;
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(int8_gemm_of);
HWY_EXPORT(to_integers);
HWY_EXPORT(largest_bits);

Int8Rows::Int8Rows(const GemmOperand& a, int64_t num_rows, int64_t width)
    : padded_width((width + kInt8TermsPerScale - 1) / kInt8TermsPerScale * kInt8TermsPerScale) {
  const int64_t num_factors = (num_rows + 15) / 16 * 16;  // of 64 bytes
  float* room = cpu::scratch_floats(static_cast<size_t>(num_factors + num_rows * padded_width / 2));
  factors = room;
  auto* integers = reinterpret_cast<int16_t*>(room + num_factors);
  rows = integers;
  constexpr float kLargestInteger = 32767.0F;
  constexpr float kSmallest = 0x1p-100F;  // below it all elements count as zero
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* values = a.data + row * a.stride;
    const float largest = std::bit_cast<float>(HWY_DYNAMIC_DISPATCH(largest_bits)(values, width));
    const bool counts = largest >= kSmallest && largest <= std::numeric_limits<float>::max();
    room[row] = counts || largest < kSmallest ? largest / kLargestInteger : std::numeric_limits<float>::quiet_NaN();
    HWY_DYNAMIC_DISPATCH(to_integers)
    (values, counts ? width : 0, counts ? kLargestInteger / largest : 0.0F, integers + row * padded_width);
    std::fill_n(integers + row * padded_width, counts ? 0 : padded_width, int16_t{0});
  }
}

void row_gemm(const GemmShape& shape, const Int8Rows& a, const NarrowMatrix& b, int64_t first_column, float* c,
              int64_t c_stride) {
  HWY_DYNAMIC_DISPATCH(int8_gemm_of)(shape, a, b, first_column, c, c_stride);
}

}  // namespace cadre
#endif  // HWY_ONCE
