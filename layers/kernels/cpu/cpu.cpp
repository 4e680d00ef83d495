// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu/cpu.hpp"

#include <hwy/targets.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

constexpr const char* kVariable = "CADRE_MAX_CPU_ISA";

// Of x86. A smaller bit stands for a newer instruction set; what Highway has above AVX512 is not compiled in.
struct Limit {
  std::string_view name;
  int64_t newest_target;
  bool allows_bf16;
};
constexpr Limit kLimits[] = {
    {"SSE4", HWY_SSE4, false},
    {"AVX2", HWY_AVX2, false},
    {"AVX512", HWY_AVX3, false},
    {"AVX512_BF16", HWY_AVX3, true},
};

// Null: no limit.
const Limit* limit() {
  const char* name = std::getenv(kVariable);
  if (name == nullptr) return nullptr;
  CADRE_CHECK(HWY_ARCH_X86, fmt::format("{} = {}: this CPU is not an x86", kVariable, name), "unset it");
  const auto* const found = std::ranges::find(kLimits, std::string_view(name), &Limit::name);
  CADRE_CHECK(found != std::end(kLimits), fmt::format("{} = {} is no instruction set", kVariable, name),
              "SSE4, AVX2, AVX512 or AVX512_BF16, or unset it");
  return found;
}

}  // namespace

void apply_cpu_limit() {
  if (const Limit* found = limit()) hwy::DisableTargets(found->newest_target - 1);
}

bool cpu_multiplies_bf16() {
#if HWY_ARCH_X86
  const Limit* found = limit();
  return (found == nullptr || found->allows_bf16) && __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

std::string_view cpu_vector_target() {
  const int64_t usable = hwy::SupportedTargets() & (HWY_TARGETS);
  return hwy::TargetName(usable & -usable);
}

const WeightProducts& CpuKernels::products_for(const Parameter& weight) const {
  if (weight.value.dtype() == DType::f32) return *products_;
  CADRE_ASSERT(fixed_ != nullptr);
  return *fixed_;
}

void CpuKernels::linear(const Tensor& x, const Parameter& weight, const Tensor& y) const {
  if (x.dim(0) > 0) products_for(weight).linear(x, weight, y);
}

void CpuKernels::linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                                   Accumulate accumulate) const {
  if (dy.dim(0) > 0) products_for(weight).linear_input_grad(dy, weight, dx, accumulate);
}

void CpuKernels::linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const {
  if (x.dim(0) > 0) {
    products_->linear_weight_grad(x, dy, dw, accumulate);
  } else if (accumulate == Accumulate::no) {
    dw.fill_zero();
  }
}

namespace {

float* room_of(Buffer& buffer, size_t count) {
  if (buffer.bytes() < count * sizeof(float)) {
    buffer = Buffer();  // given back first: the two never exist together
    buffer = Buffer(count * sizeof(float));
  }
  return buffer.as<float>();
}

}  // namespace

float* cpu::scratch_floats(size_t count) {
  thread_local Buffer buffer;
  return room_of(buffer, count);
}

float* cpu::part_scratch(size_t count) {
  thread_local Buffer buffer;
  return room_of(buffer, count);
}

namespace {

std::unique_ptr<WeightProducts> products_of(Precision precision, WeightFormat weights,
                                            const ProductSettings& settings) {
  if (weights != WeightFormat::fp32) return make_narrow_products(weights, *settings.threads);
  switch (precision) {
    case Precision::fp32: return make_fp32_products(settings);
    case Precision::bf16: return make_bf16_products(settings);
    case Precision::fp8: return make_fp8_products(Fp8Scale::fp32, settings);
    case Precision::fp8_ue8m0: return make_fp8_products(Fp8Scale::ue8m0, settings);
  }
  throw Error(ErrorKind::internal, "no such precision");
}

}  // namespace

CpuKernels::CpuKernels(Precision precision, const CpuOptions& options)
    : own_threads_(options.threads == nullptr ? std::make_unique<ThreadPool>() : nullptr),
      threads_(options.threads == nullptr ? *own_threads_ : *options.threads),
      choice_(options.products),
      products_(products_of(precision, options.weights, {&threads_, options.products, options.bits})),
      fixed_(make_fixed_products({&threads_, options.products, options.bits}, precision != Precision::fp32)),
      in_fp8_(precision == Precision::fp8 || precision == Precision::fp8_ue8m0),
      rows_independent_(options.bits == RowBits::everywhere) {
  if (precision == Precision::fp32 && options.weights == WeightFormat::fp32) return;
  fp32_ = std::make_unique<CpuKernels>(
      Precision::fp32, CpuOptions{.bits = options.bits, .threads = &threads_, .products = options.products});
}

CpuKernels::CpuKernels(std::unique_ptr<WeightProducts> products)
    : own_threads_(std::make_unique<ThreadPool>()),
      threads_(*own_threads_),
      products_(std::move(products)),
      in_fp8_(false) {}

std::unique_ptr<Kernels> make_cpu_kernels(Precision precision, const CpuOptions& options) {
  use_one_library_thread();
  return std::make_unique<CpuKernels>(precision, options);
}

// Parts of rows: copies as whole pieces, and the products of latent attention, one for each head.

namespace {

float* start_of(const Columns& columns, size_t row) {
  return columns.rows.data<float>() + row * cpu::width_of(columns.rows) + columns.first;
}

// The rows of one head in x [T,NH,width].
GemmOperand head_of(const Tensor& x, int64_t head) { return {x.data<float>() + head * x.dim(2), x.dim(1) * x.dim(2)}; }

const float* rows_of_head(const HeadRows& weight, int64_t head) {
  const int64_t group = weight.weight.dim(0) / weight.num_heads;
  return weight.weight.data<float>() + (head * group + weight.first) * weight.weight.dim(1);
}

}  // namespace

void CpuKernels::copy_columns(const Columns& src, const Columns& dst) const {
  const size_t num_rows = cpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  const size_t repeats = num_rows / cpu::num_rows_of(src.rows);
  const size_t bytes = static_cast<size_t>(dst.count) * sizeof(float);
  cpu::for_pieces(threads_, num_rows, static_cast<size_t>(dst.count), [&](size_t first, size_t count) {
    for (size_t r = first; r < first + count; ++r) std::memcpy(start_of(dst, r), start_of(src, r / repeats), bytes);
  });
}

void CpuKernels::sum_columns(const Columns& src, const Columns& dst) const {
  const size_t num_rows = cpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  const size_t terms = cpu::num_rows_of(src.rows) / num_rows;
  const auto count = static_cast<size_t>(dst.count);
  cpu::for_pieces(threads_, num_rows, count * terms, [&](size_t first, size_t rows) {
    for (size_t r = first; r < first + rows; ++r) {
      float* sum = start_of(dst, r);
      std::copy_n(start_of(src, r * terms), count, sum);
      for (size_t j = 1; j < terms; ++j) {
        const float* term = start_of(src, r * terms + j);
        for (size_t i = 0; i < count; ++i) sum[i] += term[i];
      }
    }
  });
}

void CpuKernels::scale_columns(double factor, const Columns& src, const Columns& dst, Accumulate accumulate) const {
  const auto by = static_cast<float>(factor);
  const auto width = static_cast<size_t>(src.count);
  const bool adds = accumulate == Accumulate::yes;
  cpu::for_pieces(threads_, cpu::num_rows_of(src.rows), width, [&](size_t first, size_t count) {
    for (size_t r = first; r < first + count; ++r) {
      const float* from = start_of(src, r);
      float* to = start_of(dst, r);
      for (size_t i = 0; i < width; ++i) to[i] = by * from[i] + (adds ? to[i] : 0.0F);
    }
  });
}

void CpuKernels::head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = weight.weight.dim(1);
  threads_.run(weight.num_heads, [&](int64_t head) {
    row_gemm({x.dim(0), weight.count, width}, head_of(x, head),
             {rows_of_head(weight, head), width, /*transposed=*/true}, y.data<float>() + head * y.dim(2),
             y.dim(1) * y.dim(2));
  });
}

void CpuKernels::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = weight.weight.dim(1);
  threads_.run(weight.num_heads, [&](int64_t head) {
    row_gemm({x.dim(0), width, weight.count}, head_of(x, head), {rows_of_head(weight, head), width},
             y.data<float>() + head * y.dim(2), y.dim(1) * y.dim(2));
  });
}

}  // namespace cadre
