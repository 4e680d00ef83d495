// SPDX-License-Identifier: Apache-2.0
// Products with a weight on a Machine (gpu_call.hpp): what each precision makes of the operands. The multiplication
// itself is the machine's.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include "layers/kernels/gpu_call.hpp"
#include "layers/kernels/gpu_elements.hpp"
#include "layers/kernels/gpu_fp8.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {
namespace gpu {

// d [rows, columns] = op(a) op(b), or adds. Row-major without gaps; op(a) is [rows, inner] and op(b) [inner, columns], and
// a transposed operand is stored the other way round. d is f32, sums are fp32.
struct ProductShape {
  int64_t rows;
  int64_t columns;
  int64_t inner;
  bool a_transposed = false;
  bool b_transposed = false;
  Accumulate accumulate = Accumulate::no;
};

// The same for a library whose matrices are column-major, where a row-major matrix is its own transpose: d is
// op(first) op(second) with first = b and second = a. `rows` of a stored matrix is also its leading dimension.
struct ColumnMajorProduct {
  struct Stored {
    int64_t rows;
    int64_t columns;
    bool transposed;
  };
  Stored first;
  Stored second;
  Stored result;
};

inline ColumnMajorProduct in_column_major(const ProductShape& shape) {
  const auto stored = [](int64_t rows, int64_t columns, bool transposed) {
    return transposed ? ColumnMajorProduct::Stored{rows, columns, true}
                      : ColumnMajorProduct::Stored{columns, rows, false};
  };
  return {stored(shape.inner, shape.columns, shape.b_transposed), stored(shape.rows, shape.inner, shape.a_transposed),
          stored(shape.rows, shape.columns, false)};
}

// Which values of an operand share a scale in fp8: 128 of a row, 128 of a column, or a block.
struct Fp8Tiles {
  int64_t rows;
  int64_t columns;
};
inline constexpr Fp8Tiles kRowTiles = {1, kFp8TileChannels};
inline constexpr Fp8Tiles kColumnTiles = {kFp8TileChannels, 1};
inline constexpr Fp8Tiles kWeightBlocks = {kFp8TileChannels, kFp8TileChannels};

// A weight as its products take it.
struct RoundedWeight final : PackedWeight {
  RoundedWeight(Precision as, size_t bytes, Memory& memory) : precision(as), values(bytes, memory) {}
  Precision precision;
  Buffer values;
  uint64_t version = 0;
};

}  // namespace gpu

// fp32 takes operands as they are, bf16 rounds them. fp8 rounds them to codes and scales and multiplies code x scale: in
// fp32, or, where scales are powers of two, in bf16, which holds such products exactly and runs on tensor cores.
template <class Machine>
class GpuProducts final : public WeightProducts {
 public:
  GpuProducts(std::shared_ptr<Machine> machine, Precision precision)
      : machine_(std::move(machine)), precision_(precision) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    run([&]<class T>(Call& call, std::type_identity<T>) {
      const gpu::ProductShape shape = {x.dim(0), weight.value.dim(0), weight.value.dim(1), false, true};
      const T* w = kept_weight<T>(call, weight);
      call.multiply(shape, operand<T>(call, x, gpu::kRowTiles), w, call.out(y));
    });
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    run([&]<class T>(Call& call, std::type_identity<T>) {
      const gpu::ProductShape shape = {dy.dim(0), weight.value.dim(1), weight.value.dim(0), false, false, accumulate};
      const T* w = kept_weight<T>(call, weight);
      call.multiply(shape, operand<T>(call, dy, gpu::kRowTiles), w, result(call, dx, accumulate));
    });
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    run([&]<class T>(Call& call, std::type_identity<T>) {
      const gpu::ProductShape shape = {dw.dim(0), dw.dim(1), x.dim(0), true, false, accumulate};
      const T* left = operand<T>(call, dy, gpu::kColumnTiles);
      call.multiply(shape, left, operand<T>(call, x, gpu::kColumnTiles), result(call, dw, accumulate));
    });
  }

 private:
  using Call = gpu::Call<Machine>;

  // Calls `body` with the element type that is multiplied.
  template <class Body>
  void run(const Body& body) const {
    Call call(*machine_);
    if (precision_ == Precision::bf16 || precision_ == Precision::fp8_ue8m0) {
      body(call, std::type_identity<bf16>());
    } else {
      body(call, std::type_identity<float>());
    }
    call.finish();
  }

  static float* result(Call& call, const Tensor& tensor, Accumulate accumulate) {
    return accumulate == Accumulate::yes ? call.both(tensor) : call.out(tensor);
  }

  template <class T>
  const T* operand(Call& call, const Tensor& values, gpu::Fp8Tiles tiles) const {
    if constexpr (std::is_same_v<T, float>) {
      if (precision_ == Precision::fp32) return call.in(values);
    }
    T* rounded = call.template scratch<T>(values.numel());
    round(call, values, tiles, rounded);
    return rounded;
  }

  // Kept until the weight moves on.
  template <class T>
  const T* kept_weight(Call& call, const Parameter& weight) const {
    if constexpr (std::is_same_v<T, float>) {
      if (precision_ == Precision::fp32) return call.in(weight.value);
    }
    auto* kept = dynamic_cast<gpu::RoundedWeight*>(weight.packed.get());
    if (kept == nullptr || kept->precision != precision_) {
      const size_t bytes = static_cast<size_t>(weight.value.numel()) * sizeof(T);
      weight.packed = std::make_unique<gpu::RoundedWeight>(precision_, bytes, machine_->memory());
      kept = static_cast<gpu::RoundedWeight*>(weight.packed.get());
    } else if (kept->version == weight.version) {
      return kept->values.template as<T>();
    }
    round(call, weight.value, gpu::kWeightBlocks, kept->values.template as<T>());
    kept->version = weight.version;
    return kept->values.template as<T>();
  }

  template <class T>
  void round(Call& call, const Tensor& values, gpu::Fp8Tiles tiles, T* rounded) const {
    const float* exact = call.in(values);
    if constexpr (std::is_same_v<T, bf16>) {
      if (precision_ == Precision::bf16) return call.elements(values.numel(), gpu::ToBf16{exact, rounded});
    }
    const int64_t rows = values.dim(0);
    const int64_t width = values.row_numel();
    gpu::QuantiseFp8 quantise = {.values = exact,
                                 .codes = call.template scratch<uint8_t>(values.numel()),
                                 .scales = nullptr,
                                 .rows = rows,
                                 .width = width,
                                 .tile_rows = tiles.rows,
                                 .tile_columns = tiles.columns,
                                 .kind = precision_ == Precision::fp8 ? Fp8Scale::fp32 : Fp8Scale::ue8m0};
    quantise.scales = call.template scratch<float>(quantise.num_blocks());
    call.blocks(quantise.num_blocks(), quantise);
    call.elements(values.numel(),
                  gpu::DequantiseFp8<T>{quantise.codes, quantise.scales, rounded, width, tiles.rows, tiles.columns});
  }

  std::shared_ptr<Machine> machine_;
  Precision precision_;
};

}  // namespace cadre
