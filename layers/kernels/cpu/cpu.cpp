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

void CpuKernels::linear(const Tensor& x, const Parameter& weight, const Tensor& y) const {
  if (x.dim(0) > 0) products_->linear(x, weight, y);
}

void CpuKernels::linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                                   Accumulate accumulate) const {
  if (dy.dim(0) > 0) products_->linear_input_grad(dy, weight, dx, accumulate);
}

void CpuKernels::linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const {
  if (x.dim(0) > 0) {
    products_->linear_weight_grad(x, dy, dw, accumulate);
  } else if (accumulate == Accumulate::no) {
    dw.fill_zero();
  }
}

float* cpu::scratch_floats(size_t count) {
  thread_local Buffer buffer;
  if (buffer.bytes() < count * sizeof(float)) {
    buffer = Buffer();  // given back first: the two never exist together
    buffer = Buffer(count * sizeof(float));
  }
  return buffer.as<float>();
}

std::unique_ptr<Kernels> make_cpu_kernels(Precision precision, RowBits bits, Poller* poller) {
  auto fp32 = std::make_unique<CpuKernels>(poller, make_fp32_products(bits, poller));
  if (precision == Precision::fp32) return fp32;
  if (precision == Precision::bf16) {
    return std::make_unique<CpuKernels>(poller, make_bf16_products(bits, poller), std::move(fp32));
  }
  const Fp8Scale scale = precision == Precision::fp8 ? Fp8Scale::fp32 : Fp8Scale::ue8m0;
  return std::make_unique<CpuKernels>(poller, make_fp8_products(scale, bits, poller), std::move(fp32), /*in_fp8=*/true);
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
  for (size_t r = 0; r < num_rows; ++r) std::memcpy(start_of(dst, r), start_of(src, r / repeats), bytes);
}

void CpuKernels::sum_columns(const Columns& src, const Columns& dst) const {
  const size_t num_rows = cpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  const size_t terms = cpu::num_rows_of(src.rows) / num_rows;
  const auto count = static_cast<size_t>(dst.count);
  for (size_t r = 0; r < num_rows; ++r) {
    float* sum = start_of(dst, r);
    std::copy_n(start_of(src, r * terms), count, sum);
    for (size_t j = 1; j < terms; ++j) {
      const float* term = start_of(src, r * terms + j);
      for (size_t i = 0; i < count; ++i) sum[i] += term[i];
    }
  }
}

void CpuKernels::head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = weight.weight.dim(1);
  for (int64_t head = 0; head < weight.num_heads; ++head) {
    row_gemm({x.dim(0), weight.count, width, poller_}, head_of(x, head),
             {rows_of_head(weight, head), width, /*transposed=*/true}, y.data<float>() + head * y.dim(2),
             y.dim(1) * y.dim(2));
  }
}

void CpuKernels::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = weight.weight.dim(1);
  for (int64_t head = 0; head < weight.num_heads; ++head) {
    row_gemm({x.dim(0), width, weight.count, poller_}, head_of(x, head), {rows_of_head(weight, head), width},
             y.data<float>() + head * y.dim(2), y.dim(1) * y.dim(2));
  }
}

}  // namespace cadre
