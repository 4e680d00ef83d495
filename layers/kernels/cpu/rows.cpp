// SPDX-License-Identifier: Apache-2.0
// Rows on their way to experts and back, and the embedding: every loop runs at the speed of memory.
#include "layers/kernels/cpu/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/rows.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// Results of this size are written past the caches: there they would only push out what is still needed, and every
// line would be read before it is written.
constexpr size_t kPastCacheBytes = size_t{16} << 20;

bool written_past_cache(const float* dst, size_t num_rows, size_t width) {
  const size_t lanes = hn::Lanes(FloatTag());
  return num_rows * width * sizeof(float) >= kPastCacheBytes && width % lanes == 0 &&
         reinterpret_cast<uintptr_t>(dst) % (lanes * sizeof(float)) == 0;
}

// dst[i ..] = value(i, lanes) for a whole row.
template <class Value>
HWY_INLINE void write_row(bool past_cache, size_t width, float* dst, Value&& value) {
  if (!past_cache) {
    for_each_vector(width, [&](size_t i, auto lanes) HWY_ATTR { lanes.store(value(i, lanes), dst + i); });
    return;
  }
  for (size_t i = 0; i < width; i += hn::Lanes(FloatTag())) hn::Stream(value(i, WholeVector{}), FloatTag(), dst + i);
}

// The processor fetches ahead inside a page; where the next row starts it cannot know.
HWY_INLINE void fetch_start(const float* row, size_t width) {
  constexpr size_t kPage = 1024;  // floats
  constexpr size_t kLine = 16;
  for (size_t page = 0; page < width; page += kPage) {
    for (size_t i = page; i < std::min(width, page + 4 * kLine); i += kLine) hwy::Prefetch(row + i);
  }
}

// A stride counts floats from one index to the next. factors may be null (1).
void gather_scaled_rows(const float* src, size_t stride, const int32_t* index, const float* factors, float* dst,
                        size_t num_rows, size_t width, bool past_cache) {
  for (size_t r = 0; r < num_rows; ++r, dst += width) {
    const float* row = src + static_cast<size_t>(index[r]) * stride;
    if (r + 1 < num_rows) fetch_start(src + static_cast<size_t>(index[r + 1]) * stride, width);
    if (factors == nullptr) {  // not memcpy, which takes 1.5 times as long on rows of some KiB
      write_row(past_cache, width, dst, [=](size_t i, auto lanes) HWY_ATTR { return lanes.load(row + i); });
      continue;
    }
    const Float factor = splat(factors[r]);
    write_row(past_cache, width, dst,
              [=](size_t i, auto lanes) HWY_ATTR { return hn::Mul(factor, lanes.load(row + i)); });
  }
  if (past_cache) hwy::FlushStream();
}

// dst = sum of factors[j] src[index[j]] over `count` rows; factors may be null (1). The sum stays in registers.
void sum_scaled_rows(const float* src, size_t stride, const int32_t* index, const float* factors, size_t count,
                     bool past_cache, float* dst, size_t width) {
  write_row(past_cache, width, dst, [=](size_t i, auto lanes) HWY_ATTR {
    Float sum = splat(0.0F);
    for (size_t j = 0; j < count; ++j) {
      const Float row = lanes.load(src + static_cast<size_t>(index[j]) * stride + i);
      sum = factors == nullptr ? hn::Add(sum, row) : hn::MulAdd(splat(factors[j]), row, sum);
    }
    return sum;
  });
}

void sum_ranges_of_rows(const float* src, size_t stride, const int32_t* offsets, const int32_t* index,
                        const float* factors, float* dst, size_t num_rows, size_t width, bool past_cache) {
  for (size_t r = 0; r < num_rows; ++r, dst += width) {
    const auto first = static_cast<size_t>(offsets[r]);
    const auto count = static_cast<size_t>(offsets[r + 1] - offsets[r]);
    sum_scaled_rows(src, stride, index + first, factors == nullptr ? nullptr : factors + first, count, past_cache, dst,
                    width);
  }
  if (past_cache) hwy::FlushStream();
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

// Columns [0, count) of rows of `width`.
void scatter_add_rows(const float* src, const int32_t* index, float* dst, size_t num_rows, size_t width, size_t count) {
  for (size_t r = 0; r < num_rows; ++r, src += width) {
    float* row = dst + static_cast<size_t>(index[r]) * width;
    for_each_vector(count, [=](size_t i, auto lanes)
                               HWY_ATTR { lanes.store(hn::Add(lanes.load(row + i), lanes.load(src + i)), row + i); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(written_past_cache);
HWY_EXPORT(gather_scaled_rows);
HWY_EXPORT(sum_ranges_of_rows);
HWY_EXPORT(dot_pairs_of_rows);
HWY_EXPORT(scatter_add_rows);

using cpu::count_of;
using cpu::data_or_null;

namespace {

size_t float_stride(const Rows& rows) { return static_cast<size_t>(rows.stride) / sizeof(float); }

const float* at(const float* optional, size_t index) { return optional == nullptr ? nullptr : optional + index; }

// dst[r] = factors[r] src[index[r]], or without factors; a stride counts floats.
void gather(ThreadPool& threads, const float* src, size_t stride, const Tensor& index, const float* factors,
            const Tensor& dst) {
  const size_t width = cpu::width_of(dst);
  const bool past_cache = HWY_DYNAMIC_DISPATCH(written_past_cache)(dst.data<float>(), count_of(index), width);
  cpu::for_pieces(threads, count_of(index), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(gather_scaled_rows)
    (src, stride, index.data<int32_t>() + first, at(factors, first), dst.data<float>() + first * width, count, width,
     past_cache);
  });
}

}  // namespace

void CpuKernels::embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const {
  if (table.dtype() == DType::bf16) {
    const size_t width = cpu::width_of(table);
    return cpu::for_pieces(threads_, count_of(ids), width, [&](size_t first, size_t count) {
      for (size_t t = first; t < first + count; ++t) {
        const auto* row = table.data<bf16>() + static_cast<size_t>(ids.data<int32_t>()[t]) * width;
        std::transform(row, row + width, y.data<float>() + t * width, [](bf16 value) { return to_float(value); });
      }
    });
  }
  gather(threads_, table.data<float>(), cpu::width_of(table), ids, nullptr, y);
}

// Parts are ranges of columns: each adds up the tokens in their order.
void CpuKernels::embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const {
  constexpr size_t kColumns = 128;
  const size_t width = cpu::width_of(dtable);
  if (count_of(ids) == 0) return;
  threads_.run(static_cast<int64_t>((width + kColumns - 1) / kColumns), [&](int64_t part) {
    const size_t first = static_cast<size_t>(part) * kColumns;
    HWY_DYNAMIC_DISPATCH(scatter_add_rows)
    (dy.data<float>() + first, ids.data<int32_t>(), dtable.data<float>() + first, count_of(ids), width,
     std::min(kColumns, width - first));
  });
}

void CpuKernels::gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const {
  gather(threads_, src.row<float>(0), float_stride(src), index, data_or_null(scale), dst);
}

void CpuKernels::sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                          const Tensor& dst) const {
  const auto num_rows = static_cast<size_t>(dst.dim(0));
  const auto width = static_cast<size_t>(dst.row_numel());
  const bool past_cache = HWY_DYNAMIC_DISPATCH(written_past_cache)(dst.data<float>(), num_rows, width);
  cpu::for_pieces(threads_, num_rows, width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(sum_ranges_of_rows)
    (src.row<float>(0), float_stride(src), offsets.data<int32_t>() + first, index.data<int32_t>(), data_or_null(weight),
     dst.data<float>() + first * width, count, width, past_cache);
  });
}

void CpuKernels::dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                          const Tensor& out) const {
  const auto width = static_cast<size_t>(a.width);
  cpu::for_pieces(threads_, count_of(out), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(dot_pairs_of_rows)
    (a.row<float>(0), float_stride(a), a_index.data<int32_t>() + first, b.row<float>(0), float_stride(b),
     b_index.data<int32_t>() + first, out.data<float>() + first, count, width);
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
