// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu/cpu.hpp"

#include "comm/base/buffer.hpp"
#include "layers/kernels/cpu/gemm.hpp"

namespace cadre {

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

}  // namespace cadre
