// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu_gemm.hpp"
#include "layers/kernels/cpu_products.hpp"

namespace cadre {
namespace {

constexpr int64_t kFewRows = 64;

// Few rows gain up to 2.5 times from a packed weight. Packing costs a pass over the weight, which a weight that trains
// would pay at every step for a few products; and a choice by use counts would make equal calls differ in bits.
bool gains_from_packing(const Parameter& weight, int64_t num_rows) {
  return num_rows < kFewRows && !weight.grad.defined();
}

class Fp32Products final : public WeightProducts {
 public:
  explicit Fp32Products(std::unique_ptr<WeightProducts> packed) : packed_(std::move(packed)) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    if (packed_ && gains_from_packing(weight, x.dim(0))) return packed_->linear(x, weight, y);
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    gemm({x.dim(0), width_out, width_in}, {x.data<float>(), width_in},
         {weight.value.data<float>(), width_in, /*transposed=*/true}, y.data<float>(), width_out);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const float beta = accumulate == Accumulate::yes ? 1.0F : 0.0F;
    gemm({dy.dim(0), width_in, width_out}, {dy.data<float>(), width_out}, {weight.value.data<float>(), width_in},
         dx.data<float>(), width_in, 1.0F, beta);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    const float beta = accumulate == Accumulate::yes ? 1.0F : 0.0F;
    gemm({width_out, width_in, x.dim(0)}, {dy.data<float>(), width_out, /*transposed=*/true},
         {x.data<float>(), width_in}, dw.data<float>(), width_in, 1.0F, beta);
  }

 private:
  std::unique_ptr<WeightProducts> packed_;  // null: never
};

}  // namespace

std::unique_ptr<WeightProducts> make_fp32_products(PackedWeights packed) {
  const bool may_pack = packed == PackedWeights::where_faster;
  return std::make_unique<Fp32Products>(may_pack ? make_onednn_products(Precision::fp32) : nullptr);
}

}  // namespace cadre
