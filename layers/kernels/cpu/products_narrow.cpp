// SPDX-License-Identifier: Apache-2.0
// y = x W^T of weights that are kept in bf16, int8 or fp8: for generation, which reads every weight for each token.
#include <algorithm>
#include <cmath>

#include "comm/base/check.hpp"
#include "comm/wire/fp8.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

float largest_of(const float* values, int64_t count) {
  float largest = 0.0F;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

void to_int8(const float* values, int64_t count, int8_t* codes, float* scale) {
  const float largest = largest_of(values, count);
  *scale = largest / 127.0F;
  const float inverse = largest > 0.0F ? 127.0F / largest : 0.0F;
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(std::lrint(values[i] * inverse));
}

void to_fp8_codes(const float* values, int64_t count, uint8_t* codes, float* scale) {
  const float unit = fp8_scale(largest_of(values, count), Fp8Scale::fp32);
  for (int64_t i = 0; i < count; ++i) codes[i] = to_fp8(values[i] / unit);
  *scale = unit * kFp8OverHalf;
}

struct NarrowWeight final : PackedWeight {
  NarrowMatrix matrix;
  uint64_t version = 0;
};

class NarrowProducts final : public WeightProducts {
 public:
  NarrowProducts(WeightFormat format, ThreadPool& threads) : format_(format), threads_(threads) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const NarrowMatrix& matrix = narrowed(weight);
    row_gemm({x.dim(0), matrix.rows, matrix.width, &threads_}, {x.data<float>(), matrix.width}, matrix, y.data<float>(),
             matrix.rows);
  }
  void linear_input_grad(const Tensor& /*dy*/, const Parameter& /*weight*/, const Tensor& /*dx*/,
                         Accumulate /*accumulate*/) const override {
    refuse();
  }
  void linear_weight_grad(const Tensor& /*x*/, const Tensor& /*dy*/, const Tensor& /*dw*/,
                          Accumulate /*accumulate*/) const override {
    refuse();
  }

 private:
  [[noreturn]] static void refuse() { throw Error(ErrorKind::internal, "a gradient of a weight in a narrow format"); }

  const NarrowMatrix& narrowed(const Parameter& weight) const {
    auto* kept = dynamic_cast<NarrowWeight*>(weight.packed.get());
    if (kept != nullptr && kept->version == weight.version && kept->matrix.format == format_) return kept->matrix;
    auto made = std::make_unique<NarrowWeight>();
    made->matrix =
        NarrowMatrix(weight.value.data<float>(), weight.value.dim(0), weight.value.dim(1), format_, threads_);
    made->version = weight.version;
    weight.packed = std::move(made);
    return static_cast<NarrowWeight&>(*weight.packed).matrix;
  }

  WeightFormat format_;
  ThreadPool& threads_;
};

}  // namespace

NarrowMatrix::NarrowMatrix(const float* values, int64_t num_rows, int64_t row_width, WeightFormat of,
                           ThreadPool& threads)
    : format(of), rows(num_rows), width(row_width) {
  const auto count = static_cast<size_t>(rows * width);
  if (format == WeightFormat::bf16) {
    codes = Buffer(count * sizeof(bf16));
    cpu::for_pieces(threads, count, 1,
                    [&](size_t first, size_t size) { round_to_bf16(values + first, codes.as<bf16>() + first, size); });
    return;
  }
  codes = Buffer(count);
  scales = Buffer(static_cast<size_t>(rows * scales_per_row()) * sizeof(float));
  cpu::for_pieces(threads, static_cast<size_t>(rows), static_cast<size_t>(width), [&](size_t begin, size_t size) {
    for (int64_t row = static_cast<int64_t>(begin); row < static_cast<int64_t>(begin + size); ++row) {
      for (int64_t i = 0; i < scales_per_row(); ++i) {
        const int64_t first = row * width + i * terms_per_scale();
        const int64_t terms = std::min(terms_per_scale(), width - i * terms_per_scale());
        float* scale = scales.as<float>() + row * scales_per_row() + i;
        if (format == WeightFormat::int8) {
          to_int8(values + first, terms, codes.as<int8_t>() + first, scale);
        } else {
          to_fp8_codes(values + first, terms, codes.as<uint8_t>() + first, scale);
        }
      }
    }
  });
}

std::unique_ptr<WeightProducts> make_narrow_products(WeightFormat format, ThreadPool& threads) {
  return std::make_unique<NarrowProducts>(format, threads);
}

}  // namespace cadre
