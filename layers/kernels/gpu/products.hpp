// SPDX-License-Identifier: Apache-2.0
// Products with a weight on a Machine (call.hpp): what each precision makes of the operands. The multiplication
// itself is the machine's.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "layers/kernels/gpu/call.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/fp8.hpp"
#include "layers/kernels/gpu/multiply.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {
namespace gpu {

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

// fp32 takes operands as they are, bf16 rounds them. fp8, on a machine that does not multiply it (gpu_fp8_products.hpp is
// for those that do), rounds them to codes and scales and multiplies code x scale: in fp32, or, where scales are powers of
// two, in bf16, which holds such products exactly and runs on tensor cores.
template <class Machine>
class GpuProducts final : public GroupedWeightProducts {
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

  void grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const override {
    run([&]<class T>(Call& call, std::type_identity<T>) {
      products_of_rows(call, operand<T>(call, x, gpu::kRowTiles), groups, /*transposed=*/true, call.out(y));
    });
  }

  void grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const override {
    run([&]<class T>(Call& call, std::type_identity<T>) {
      products_of_rows(call, operand<T>(call, dy, gpu::kRowTiles), groups, /*transposed=*/false, call.out(dx));
    });
  }

  void grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                  Accumulate accumulate) const override {
    run([&]<class T>(Call& call, std::type_identity<T>) {
      const std::vector<const T*> left = grouped_operand<T>(call, dy, groups);
      const std::vector<const T*> right = grouped_operand<T>(call, x, groups);
      std::vector<gpu::Product<const T*>> products;
      for (size_t g = 0; g < groups.size(); ++g) {
        const Tensor& dw = groups[g].weight->grad;
        if (groups[g].count > 0) {
          const gpu::ProductShape shape = {dw.dim(0), dw.dim(1), groups[g].count, true, false, accumulate};
          products.push_back({shape, left[g], right[g], result(call, dw, accumulate)});
        } else if (accumulate == Accumulate::no) {
          call.elements(dw.numel(), gpu::Zero{call.out(dw)});
        }
      }
      call.multiply_grouped(products);
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

  // Rows times the weight of their group, or its transpose.
  template <class T>
  void products_of_rows(Call& call, const T* rows, RowGroups groups, bool transposed, float* out) const {
    std::vector<gpu::Product<const T*>> products;
    for (const RowGroup& group : groups) {
      if (group.count == 0) continue;
      const Tensor& weight = group.weight->value;
      const int64_t inner = weight.dim(transposed ? 1 : 0);
      const int64_t columns = weight.dim(transposed ? 0 : 1);
      products.push_back({{group.count, columns, inner, false, transposed},
                          rows + group.first * inner,
                          kept_weight<T>(call, *group.weight),
                          out + group.first * columns});
    }
    call.multiply_grouped(products);
  }

  // The rows of each group, rounded for a weight gradient: tiles along columns begin with the group.
  template <class T>
  std::vector<const T*> grouped_operand(Call& call, const Tensor& values, RowGroups groups) const {
    const bool tiles = precision_ == Precision::fp8 || precision_ == Precision::fp8_ue8m0;
    const T* all = tiles ? nullptr : operand<T>(call, values, gpu::kColumnTiles);
    std::vector<const T*> rows;
    for (const RowGroup& group : groups) {
      rows.push_back(!tiles ? all + group.first * values.row_numel()
                            : operand<T>(call, values.rows(group.first, group.count), gpu::kColumnTiles));
    }
    return rows;
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
    const int64_t across = gpu::tiles_of(width, tiles.columns);
    const gpu::ToFp8 of = {
        .values = exact,
        .codes = call.template scratch<uint8_t>(values.numel()),
        .scales = call.template scratch<float>(gpu::tiles_of(rows, tiles.rows) * across),
        .rows = rows,
        .width = width,
        .kind = precision_ == Precision::fp8 ? Fp8Scale::fp32 : Fp8Scale::ue8m0,
        .layout = {rows, width, across, 1},
    };
    const gpu::QuantiseFp8 quantise = {of, tiles.rows, tiles.columns};
    call.blocks(quantise.num_blocks(), quantise);
    call.elements(values.numel(),
                  gpu::DequantiseFp8<T>{of.codes, of.scales, rounded, width, tiles.rows, tiles.columns});
  }

  std::shared_ptr<Machine> machine_;
  Precision precision_;
};

}  // namespace cadre
