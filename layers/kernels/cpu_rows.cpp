// SPDX-License-Identifier: Apache-2.0
// Rows on their way to experts and back, and the embedding: every loop runs at the speed of memory.
#include "layers/kernels/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu_rows.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu_vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// A stride counts floats from one index to the next. factors may be null (1).
void gather_scaled_rows(const float* src, size_t stride, const int32_t* index, const float* factors, float* dst,
                        size_t num_rows, size_t width) {
  for (size_t r = 0; r < num_rows; ++r, dst += width) {
    const float* row = src + static_cast<size_t>(index[r]) * stride;
    if (factors == nullptr) {  // not memcpy, which takes 1.5 times as long on rows of some KiB
      for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR { lanes.store(lanes.load(row + i), dst + i); });
      continue;
    }
    const Float factor = splat(factors[r]);
    for_each_vector(width,
                    [=](size_t i, auto lanes) HWY_ATTR { lanes.store(hn::Mul(factor, lanes.load(row + i)), dst + i); });
  }
}

// dst = sum of factors[j] src[index[j]] over `count` rows; factors may be null (1). The sum stays in registers.
void sum_scaled_rows(const float* src, size_t stride, const int32_t* index, const float* factors, size_t count,
                     float* dst, size_t width) {
  for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
    Float sum = splat(0.0F);
    for (size_t j = 0; j < count; ++j) {
      const Float row = lanes.load(src + static_cast<size_t>(index[j]) * stride + i);
      sum = factors == nullptr ? hn::Add(sum, row) : hn::MulAdd(splat(factors[j]), row, sum);
    }
    lanes.store(sum, dst + i);
  });
}

void sum_ranges_of_rows(const float* src, size_t stride, const int32_t* offsets, const int32_t* index,
                        const float* factors, float* dst, size_t num_rows, size_t width) {
  for (size_t r = 0; r < num_rows; ++r, dst += width) {
    const auto first = static_cast<size_t>(offsets[r]);
    const auto count = static_cast<size_t>(offsets[r + 1] - offsets[r]);
    sum_scaled_rows(src, stride, index + first, factors == nullptr ? nullptr : factors + first, count, dst, width);
  }
}

void dot_pairs_of_rows(const float* a, size_t a_stride, const int32_t* a_index, const float* b, size_t b_stride,
                       const int32_t* b_index, float* out, size_t count, size_t width) {
  for (size_t j = 0; j < count; ++j) {
    const float* left = a + static_cast<size_t>(a_index[j]) * a_stride;
    const float* right = b + static_cast<size_t>(b_index[j]) * b_stride;
    out[j] = static_cast<float>(sum_vectors(
        width, [=](size_t i, auto lanes) HWY_ATTR { return hn::Mul(lanes.load(left + i), lanes.load(right + i)); }));
  }
}

void scatter_add_rows(const float* src, const int32_t* index, float* dst, size_t num_rows, size_t width) {
  for (size_t r = 0; r < num_rows; ++r, src += width) {
    float* row = dst + static_cast<size_t>(index[r]) * width;
    for_each_vector(width, [=](size_t i, auto lanes)
                               HWY_ATTR { lanes.store(hn::Add(lanes.load(row + i), lanes.load(src + i)), row + i); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(gather_scaled_rows);
HWY_EXPORT(sum_ranges_of_rows);
HWY_EXPORT(dot_pairs_of_rows);
HWY_EXPORT(scatter_add_rows);

using cpu::count_of;
using cpu::data_or_null;

namespace {

size_t float_stride(const Rows& rows) { return static_cast<size_t>(rows.stride) / sizeof(float); }

}  // namespace

void CpuKernels::embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const {
  HWY_DYNAMIC_DISPATCH(gather_scaled_rows)
  (table.data<float>(), cpu::width_of(table), ids.data<int32_t>(), nullptr, y.data<float>(), count_of(ids),
   cpu::width_of(table));
}

void CpuKernels::embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const {
  HWY_DYNAMIC_DISPATCH(scatter_add_rows)
  (dy.data<float>(), ids.data<int32_t>(), dtable.data<float>(), count_of(ids), cpu::width_of(dtable));
}

void CpuKernels::gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const {
  HWY_DYNAMIC_DISPATCH(gather_scaled_rows)
  (src.row<float>(0), float_stride(src), index.data<int32_t>(), data_or_null(scale), dst.data<float>(), count_of(index),
   static_cast<size_t>(dst.row_numel()));
}

void CpuKernels::sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                          const Tensor& dst) const {
  HWY_DYNAMIC_DISPATCH(sum_ranges_of_rows)
  (src.row<float>(0), float_stride(src), offsets.data<int32_t>(), index.data<int32_t>(), data_or_null(weight),
   dst.data<float>(), static_cast<size_t>(dst.dim(0)), static_cast<size_t>(dst.row_numel()));
}

void CpuKernels::dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                          const Tensor& out) const {
  HWY_DYNAMIC_DISPATCH(dot_pairs_of_rows)
  (a.row<float>(0), float_stride(a), a_index.data<int32_t>(), b.row<float>(0), float_stride(b), b_index.data<int32_t>(),
   out.data<float>(), count_of(out), static_cast<size_t>(a.width));
}

}  // namespace cadre
#endif  // HWY_ONCE
