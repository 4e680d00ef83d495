// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "comm/base/buffer.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

// A copy of a weight, made anew when the weight has changed.
struct WeightCopy {
  Buffer values;
  uint64_t version = 0;
};

struct WeightCopies final : PackedWeight {
  WeightCopy rounded;     // [N,K]
  WeightCopy transposed;  // [K,N]
};

WeightCopies& copies_of(const Parameter& weight) {
  auto* kept = dynamic_cast<WeightCopies*>(weight.packed.get());
  if (kept != nullptr) return *kept;
  weight.packed = std::make_unique<WeightCopies>();
  return static_cast<WeightCopies&>(*weight.packed);
}

template <class Write>
const float* up_to_date(const Parameter& weight, WeightCopy& copy, const Write& write) {
  if (copy.values.bytes() == 0) {
    copy.values = Buffer(weight.value.bytes());
  } else if (copy.version == weight.version) {
    return copy.values.as<float>();
  }
  write(copy.values.as<float>());
  copy.version = weight.version;
  return copy.values.as<float>();
}

constexpr int64_t kBlock = 32;  // of a transposition: both sides stay in the first cache

// Rows [first, first + count) of from [rows, width] become columns of to [width, rows].
void transpose(const float* from, int64_t rows, int64_t width, int64_t first, int64_t count, float* to) {
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, width);
    for (int64_t column = begin; column < end; ++column) {
      float* out = to + column * rows + first;
      const float* in = from + first * width + column;
      for (int64_t row = 0; row < count; ++row) out[row] = in[row * width];
    }
  }
}

class Fp32Products final : public WeightProducts {
 public:
  Fp32Products(const ProductSettings& settings, bool rounds) : settings_(settings), rounds_(rounds) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const GemmShape shape = {x.dim(0), weight.value.dim(0), weight.value.dim(1), settings_.threads};
    const GemmOperand rows = {operand(x, 0), shape.k};
    if (settings_.by_rows(weight)) {
      return row_gemm(shape, rows, {values_of(weight), shape.k, /*transposed=*/true}, y.data<float>(), shape.n);
    }
    const bool transposed = settings_.choice.transposed(shape.m);
    const GemmLibrary library = settings_.choice.library(transposed ? GemmLayout::nn : GemmLayout::nt, shape.m);
    const GemmOperand columns =
        transposed ? GemmOperand{transposed_values_of(weight), shape.n} : GemmOperand{values_of(weight), shape.k, true};
    gemm(library, shape, rows, columns, y.data<float>(), shape.n);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const GemmShape shape = {dy.dim(0), weight.value.dim(1), weight.value.dim(0), settings_.threads};
    gemm(settings_.choice.library(GemmLayout::nn, shape.m), shape, {operand(dy, 0), shape.k},
         {values_of(weight), shape.n}, dx.data<float>(), shape.n, 1.0F, beta_of(accumulate));
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const GemmShape shape = {dw.dim(0), dw.dim(1), x.dim(0), settings_.threads};
    const float* grads = operand(dy, cpu::count_of(x));
    gemm(settings_.choice.library(GemmLayout::tn, shape.k), shape, {grads, shape.m, /*transposed=*/true},
         {operand(x, 0), shape.n}, dw.data<float>(), shape.n, 1.0F, beta_of(accumulate));
  }

 private:
  static float beta_of(Accumulate accumulate) { return accumulate == Accumulate::yes ? 1.0F : 0.0F; }

  // Rounded into scratch memory from element `first` of it on, where operands are rounded; the one with the highest first.
  const float* operand(const Tensor& rows, size_t first) const {
    if (!rounds_) return rows.data<float>();
    const size_t count = cpu::count_of(rows);
    float* to = cpu::scratch_floats(first + count) + first;
    round(rows.data<float>(), to, count);
    return to;
  }

  void round(const float* from, float* to, size_t count) const {
    cpu::for_pieces(*settings_.threads, count, 1,
                    [&](size_t first, size_t size) { round_through_bf16(from + first, to + first, size); });
  }

  const float* values_of(const Parameter& weight) const {
    if (!rounds_) return weight.value.data<float>();
    return up_to_date(weight, copies_of(weight).rounded,
                      [&](float* to) { round(weight.value.data<float>(), to, cpu::count_of(weight.value)); });
  }

  const float* transposed_values_of(const Parameter& weight) const {
    const int64_t rows = weight.value.dim(0);
    return up_to_date(weight, copies_of(weight).transposed, [&](float* to) {
      const float* from = values_of(weight);
      settings_.threads->run((rows + kBlock - 1) / kBlock, [&](int64_t block) {
        const int64_t first = block * kBlock;
        transpose(from, rows, weight.value.dim(1), first, std::min(kBlock, rows - first), to);
      });
    });
  }

  ProductSettings settings_;
  bool rounds_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_fp32_products(const ProductSettings& settings, bool rounds) {
  return std::make_unique<Fp32Products>(settings, rounds);
}

std::unique_ptr<WeightProducts> make_bf16_products(const ProductSettings& settings) {
  std::unique_ptr<WeightProducts> native = make_onednn_products(settings.threads);
  return native ? std::move(native) : make_fp32_products(settings, /*rounds=*/true);
}

}  // namespace cadre
