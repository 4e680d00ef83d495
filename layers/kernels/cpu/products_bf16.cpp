// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "comm/base/buffer.hpp"
#include "layers/kernels/cpu/bf16.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/gemm.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/cpu/row_products.hpp"

namespace cadre {
namespace {

// A weight whose values are bf16 numbers, stored as f32.
struct RoundedWeight final : PackedWeight {
  explicit RoundedWeight(size_t bytes) : values(bytes) {}
  Buffer values;
  uint64_t version = 0;
};

const float* rounded(const Parameter& weight) {
  auto* kept = dynamic_cast<RoundedWeight*>(weight.packed.get());
  if (kept != nullptr && kept->version == weight.version) return kept->values.as<float>();
  if (kept == nullptr) {
    weight.packed = std::make_unique<RoundedWeight>(weight.value.bytes());
    kept = static_cast<RoundedWeight*>(weight.packed.get());
  }
  round_through_bf16(weight.value.data<float>(), kept->values.as<float>(), cpu::count_of(weight.value));
  kept->version = weight.version;
  return kept->values.as<float>();
}

class RoundedProducts final : public WeightProducts {
 public:
  RoundedProducts(RowBits bits, Poller* poller) : bits_(bits), poller_(poller) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    float* x_rounded = cpu::scratch_floats(cpu::count_of(x));
    round_through_bf16(x.data<float>(), x_rounded, cpu::count_of(x));
    forward_gemm(weight, bits_)({x.dim(0), width_out, width_in, poller_}, {x_rounded, width_in},
                                {rounded(weight), width_in, /*transposed=*/true}, y.data<float>(), width_out, 1.0F);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    float* dy_rounded = cpu::scratch_floats(cpu::count_of(dy));
    round_through_bf16(dy.data<float>(), dy_rounded, cpu::count_of(dy));
    gemm({dy.dim(0), width_in, width_out, poller_}, {dy_rounded, width_out}, {rounded(weight), width_in},
         dx.data<float>(), width_in, 1.0F, accumulate == Accumulate::yes ? 1.0F : 0.0F);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    float* x_rounded = cpu::scratch_floats(cpu::count_of(x) + cpu::count_of(dy));
    float* dy_rounded = x_rounded + cpu::count_of(x);
    round_through_bf16(x.data<float>(), x_rounded, cpu::count_of(x));
    round_through_bf16(dy.data<float>(), dy_rounded, cpu::count_of(dy));
    gemm({width_out, width_in, x.dim(0), poller_}, {dy_rounded, width_out, /*transposed=*/true}, {x_rounded, width_in},
         dw.data<float>(), width_in, 1.0F, accumulate == Accumulate::yes ? 1.0F : 0.0F);
  }

 private:
  RowBits bits_;
  Poller* poller_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_rounded_products(RowBits bits, Poller* poller) {
  return std::make_unique<RoundedProducts>(bits, poller);
}

std::unique_ptr<WeightProducts> make_bf16_products(RowBits bits, Poller* poller) {
  std::unique_ptr<WeightProducts> native = make_onednn_products(poller);
  return native ? std::move(native) : make_rounded_products(bits, poller);
}

}  // namespace cadre
