// SPDX-License-Identifier: Apache-2.0
// Products with fixed weights in bf16 or fp8: rows of the weight are widened, as many as fit the cache, and multiplied in fp32.
// No copy of a weight is kept.
#include <algorithm>

#include "comm/base/check.hpp"
#include "comm/wire/fp8.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

constexpr int64_t kTileElements = 1 << 18;  // 1 MiB as floats

int64_t num_scale_blocks(int64_t extent) { return (extent + kFp8TileChannels - 1) / kFp8TileChannels; }

// The scales of a row, one for 128 elements.
const float* scales_of_row(const Parameter& weight, int64_t row) {
  const int64_t width = num_scale_blocks(weight.value.dim(1));
  const auto* scales = weight.scales.data<float>();
  for (const ParameterPart& part : weight.parts) {
    if (row < part.first_row + part.num_rows) return scales + (row - part.first_row) / kFp8TileChannels * width;
    scales += num_scale_blocks(part.num_rows) * width;
  }
  throw Error(ErrorKind::internal, fmt::format("{} has no row {}", weight.name(), row));
}

void widen_fixed_row(const Parameter& weight, int64_t row, float* to) {
  const int64_t width = weight.value.dim(1);
  if (weight.value.dtype() == DType::bf16) {
    const auto* from = weight.value.data<bf16>() + row * width;
    for (int64_t i = 0; i < width; ++i) to[i] = to_float(from[i]);
    return;
  }
  const auto* codes = reinterpret_cast<const uint8_t*>(weight.value.raw()) + row * width;
  const float* scales = scales_of_row(weight, row);
  for (int64_t i = 0; i < width; ++i) to[i] = from_fp8(codes[i]) * scales[i / kFp8TileChannels];
}

class FixedProducts final : public WeightProducts {
 public:
  FixedProducts(const ProductSettings& settings, bool rounds) : settings_(settings), rounds_(rounds) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width = weight.value.dim(1);
    const float* rows = operand_of(x);
    for_tiles(weight, [&](int64_t first, int64_t count, const float* tile) {
      const GemmShape shape = {x.dim(0), count, width, settings_.threads};
      gemm(settings_.choice.library(GemmLayout::nt, shape.m), shape, {rows, width}, {tile, width, /*transposed=*/true},
           y.data<float>() + first, weight.value.dim(0));
    });
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width = weight.value.dim(1);
    const float* rows = operand_of(dy);
    for_tiles(weight, [&](int64_t first, int64_t count, const float* tile) {
      const GemmShape shape = {dy.dim(0), width, count, settings_.threads};
      const bool adds = accumulate == Accumulate::yes || first > 0;
      gemm(settings_.choice.library(GemmLayout::nn, shape.m), shape, {rows + first, weight.value.dim(0)}, {tile, width},
           dx.data<float>(), width, 1.0F, adds ? 1.0F : 0.0F);
    });
  }

  void linear_weight_grad(const Tensor& /*x*/, const Tensor& /*dy*/, const Tensor& /*dw*/,
                          Accumulate /*accumulate*/) const override {
    throw Error(ErrorKind::internal, "a gradient of a fixed weight");
  }

 private:
  // Rounded where operands are.
  const float* operand_of(const Tensor& rows) const {
    if (!rounds_) return rows.data<float>();
    const size_t count = cpu::count_of(rows);
    float* to = cpu::scratch_floats(count);
    cpu::for_pieces(*settings_.threads, count, 1, [&](size_t first, size_t size) {
      round_through_bf16(rows.data<float>() + first, to + first, size);
    });
    return to;
  }

  // Calls body(first row, rows, values) for parts of the weight. The parts depend on its shape alone.
  template <class Body>
  void for_tiles(const Parameter& weight, const Body& body) const {
    const int64_t num_rows = weight.value.dim(0);
    const int64_t width = weight.value.dim(1);
    const int64_t most = std::max<int64_t>(1, kTileElements / std::max<int64_t>(1, width));
    for (int64_t first = 0; first < num_rows; first += most) {
      const int64_t count = std::min(most, num_rows - first);
      float* tile = room_for_tile(static_cast<size_t>(count * width));
      cpu::for_pieces(
          *settings_.threads, static_cast<size_t>(count), static_cast<size_t>(width), [&](size_t begin, size_t rows) {
            for (size_t row = begin; row < begin + rows; ++row) {
              widen_fixed_row(weight, first + static_cast<int64_t>(row), tile + row * static_cast<size_t>(width));
            }
          });
      body(first, count, tile);
    }
  }

  // Apart from the scratch memory of the operands.
  float* room_for_tile(size_t count) const {
    if (tile_.bytes() < count * sizeof(float)) tile_ = Buffer(count * sizeof(float));
    return tile_.as<float>();
  }

  ProductSettings settings_;
  bool rounds_;
  mutable Buffer tile_;  // one thread calls the kernels
};

}  // namespace

std::unique_ptr<WeightProducts> make_fixed_products(const ProductSettings& settings, bool rounds) {
  return std::make_unique<FixedProducts>(settings, rounds);
}

}  // namespace cadre
