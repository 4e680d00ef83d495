// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu/gemm.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/cpu/row_products.hpp"

namespace cadre {
namespace {

class Fp32Products final : public WeightProducts {
 public:
  Fp32Products(RowBits bits, Poller* poller) : bits_(bits), poller_(poller) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    forward_gemm(weight, bits_)({x.dim(0), width_out, width_in, poller_}, {x.data<float>(), width_in},
                                {weight.value.data<float>(), width_in, /*transposed=*/true}, y.data<float>(), width_out,
                                1.0F);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const float beta = accumulate == Accumulate::yes ? 1.0F : 0.0F;
    gemm({dy.dim(0), width_in, width_out, poller_}, {dy.data<float>(), width_out},
         {weight.value.data<float>(), width_in}, dx.data<float>(), width_in, 1.0F, beta);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    const float beta = accumulate == Accumulate::yes ? 1.0F : 0.0F;
    gemm({width_out, width_in, x.dim(0), poller_}, {dy.data<float>(), width_out, /*transposed=*/true},
         {x.data<float>(), width_in}, dw.data<float>(), width_in, 1.0F, beta);
  }

 private:
  RowBits bits_;
  Poller* poller_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_fp32_products(RowBits bits, Poller* poller) {
  return std::make_unique<Fp32Products>(bits, poller);
}

}  // namespace cadre
