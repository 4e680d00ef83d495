// SPDX-License-Identifier: Apache-2.0
// Products with a weight on a Machine that multiplies fp8 (call.hpp): operands are rounded to codes and scales in the
// layout of Fp8Matrix (multiply.hpp), and the machine multiplies those.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/kernels/gpu/call.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/fp8.hpp"
#include "layers/kernels/gpu/multiply.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {
namespace gpu {

// Whether an operand holds a matrix as it is stored, or transposed.
enum class Fp8Form : uint8_t { as_stored, transposed };

inline int64_t padded(int64_t count) { return tiles_of(count, kFp8Multiple) * kFp8Multiple; }

// Of an Fp8Matrix [outer, inner], both padded.
inline Fp8Layout layout_of(int64_t outer, int64_t inner, Fp8Scaling scaling) {
  const Fp8Layout codes = {padded(outer), padded(inner), 1, padded(outer)};
  if (scaling == Fp8Scaling::tiles) return codes;
  return {codes.rows, codes.width, tiles_of(tiles_of(inner, kFp8TileChannels), 4) * 4, 1};
}
inline int64_t num_scales(const Fp8Layout& layout, Fp8Scaling scaling) {
  return scaling == Fp8Scaling::tiles ? tiles_of(layout.width, kFp8TileChannels) * layout.rows
                                      : tiles_of(layout.rows, kFp8TileChannels) * layout.scale_row;
}

// A weight as its products take it: [out, in] for forward, [in, out] for the input gradient, each made when it is needed.
struct Fp8Weight final : PackedWeight {
  explicit Fp8Weight(Fp8Scale scale_kind) : kind(scale_kind) {}
  struct Kept {
    Buffer codes;
    Buffer scales;
    std::optional<uint64_t> version;
  };
  Fp8Scale kind;
  std::array<Kept, 2> forms;  // by Fp8Form
};

}  // namespace gpu

template <class Machine>
class GpuFp8Products final : public GroupedWeightProducts {
 public:
  GpuFp8Products(std::shared_ptr<Machine> machine, Fp8Scale kind) : machine_(std::move(machine)), kind_(kind) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const RowGroup all = {0, x.dim(0), &weight};
    grouped_linear(x, {&all, 1}, y);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const RowGroup all = {0, dy.dim(0), &weight};
    products_of_rows(dy, {&all, 1}, gpu::Fp8Form::transposed, dx, accumulate);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    Call call(*machine_);
    multiply(call, {weight_gradient(call, x, dy, dw, accumulate)});
    call.finish();
  }

  void grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const override {
    products_of_rows(x, groups, gpu::Fp8Form::as_stored, y, Accumulate::no);
  }

  void grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const override {
    products_of_rows(dy, groups, gpu::Fp8Form::transposed, dx, Accumulate::no);
  }

  void grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                  Accumulate accumulate) const override {
    Call call(*machine_);
    std::vector<Product> products;
    for (const auto& [first, count, weight] : groups) {
      const Tensor& dw = weight->grad;
      if (count > 0) {
        products.push_back(weight_gradient(call, x.rows(first, count), dy.rows(first, count), dw, accumulate));
      } else if (accumulate == Accumulate::no) {
        call.elements(dw.numel(), gpu::Zero{call.out(dw)});
      }
    }
    multiply(call, products);
    call.finish();
  }

 private:
  using Call = gpu::Call<Machine>;
  using Product = gpu::Product<gpu::Fp8Matrix>;

  // Rows times the weight of their group or its transpose. Each group has codes of its own, so that they begin where
  // they must.
  void products_of_rows(const Tensor& rows, RowGroups groups, gpu::Fp8Form form, const Tensor& out,
                        Accumulate accumulate) const {
    Call call(*machine_);
    float* const results = accumulate == Accumulate::yes ? call.both(out) : call.out(out);
    std::vector<Product> products;
    for (const auto& [first, count, weight] : groups) {
      if (count == 0) continue;
      products.push_back({{count, out.row_numel(), rows.row_numel(), false, true, accumulate},
                          rounded(call, rows.rows(first, count), gpu::Fp8Form::as_stored),
                          kept_weight(call, *weight, form),
                          results + first * out.row_numel()});
    }
    multiply(call, products);
    call.finish();
  }

  Product weight_gradient(Call& call, const Tensor& x, const Tensor& dy, const Tensor& dw,
                          Accumulate accumulate) const {
    return {{dw.dim(0), dw.dim(1), x.dim(0), false, true, accumulate},
            rounded(call, dy, gpu::Fp8Form::transposed),
            rounded(call, x, gpu::Fp8Form::transposed),
            accumulate == Accumulate::yes ? call.both(dw) : call.out(dw)};
  }

  // Products of shapes as they are. A result that is not as the machine wants it is made in scratch memory: rows of other
  // experts lie behind it.
  void multiply(Call& call, std::vector<Product> products) const {
    const std::vector<Product> wanted = products;
    for (auto& [shape, a, b, d] : products) {
      const gpu::ProductShape exact = shape;
      shape.rows = gpu::padded(shape.rows);
      shape.columns = gpu::padded(shape.columns);
      shape.inner = gpu::padded(shape.inner);
      const bool fits = shape.rows == exact.rows && shape.columns == exact.columns;
      if (fits && reinterpret_cast<uintptr_t>(d) % 16 == 0) continue;
      shape.accumulate = Accumulate::no;
      d = call.template scratch<float>(shape.rows * shape.columns);
    }
    if (products.size() == 1) {
      call.multiply(products[0].shape, products[0].a, products[0].b, products[0].d);
    } else {
      call.multiply_grouped(products);
    }
    for (size_t i = 0; i < products.size(); ++i) {
      const auto& [shape, a, b, d] = wanted[i];
      if (products[i].d == d) continue;
      take_home(call, shape, products[i].d, products[i].shape.columns, d);
    }
  }

  // A result that was made in scratch memory, in rows of `width`.
  static void take_home(Call& call, const gpu::ProductShape& shape, const float* made, int64_t width, float* d) {
    const bool add = shape.accumulate == Accumulate::yes;
    const int64_t count = shape.rows * shape.columns;
    if (width != shape.columns) {
      call.elements(count, gpu::TakeColumns{made, d, width, shape.columns, add});
    } else if (add) {
      call.elements(count, gpu::Add{d, made, d});
    } else {
      call.copy(reinterpret_cast<const std::byte*>(made), reinterpret_cast<std::byte*>(d),
                static_cast<size_t>(count) * sizeof(float));
    }
  }

  // With tiles along the axis that is summed over: channels, or, of the transpose, rows.
  gpu::Fp8Matrix rounded(Call& call, const Tensor& values, gpu::Fp8Form form) const {
    const gpu::Fp8Layout layout = layout_of(values, form, gpu::Fp8Scaling::tiles);
    auto* const codes = call.template scratch<uint8_t>(layout.rows * layout.width);
    auto* const scales = call.template scratch<float>(gpu::num_scales(layout, gpu::Fp8Scaling::tiles));
    round(call, values, form, gpu::Fp8Scaling::tiles, codes, scales);
    return {codes, scales, gpu::Fp8Scaling::tiles};
  }

  // Until the weight moves on.
  gpu::Fp8Matrix kept_weight(Call& call, const Parameter& weight, gpu::Fp8Form form) const {
    auto* kept = dynamic_cast<gpu::Fp8Weight*>(weight.packed.get());
    if (kept == nullptr || kept->kind != kind_) {
      weight.packed = std::make_unique<gpu::Fp8Weight>(kind_);
      kept = static_cast<gpu::Fp8Weight*>(weight.packed.get());
    }
    auto& [codes, scales, version] = kept->forms.at(static_cast<size_t>(form));
    if (version != weight.version) {
      if (!version) {
        const gpu::Fp8Layout layout = layout_of(weight.value, form, gpu::Fp8Scaling::blocks);
        const int64_t num_scales = gpu::num_scales(layout, gpu::Fp8Scaling::blocks);
        codes = Buffer(static_cast<size_t>(layout.rows * layout.width), machine_->memory());
        scales = Buffer(static_cast<size_t>(num_scales) * sizeof(float), machine_->memory());
        call.elements(num_scales, gpu::Zero{scales.template as<float>()});  // those between rows of them too
      }
      round(call, weight.value, form, gpu::Fp8Scaling::blocks, codes.template as<uint8_t>(),
            scales.template as<float>());
      version = weight.version;
    }
    return {codes.template as<uint8_t>(), scales.template as<float>(), gpu::Fp8Scaling::blocks};
  }

  static gpu::Fp8Layout layout_of(const Tensor& values, gpu::Fp8Form form, gpu::Fp8Scaling scaling) {
    const int64_t rows = values.dim(0);
    const int64_t width = values.row_numel();
    return form == gpu::Fp8Form::as_stored ? gpu::layout_of(rows, width, scaling)
                                           : gpu::layout_of(width, rows, scaling);
  }

  void round(Call& call, const Tensor& values, gpu::Fp8Form form, gpu::Fp8Scaling scaling, uint8_t* codes,
             float* scales) const {
    const gpu::ToFp8 of = {.values = call.in(values),
                           .codes = codes,
                           .scales = scales,
                           .rows = values.dim(0),
                           .width = values.row_numel(),
                           .kind = kind_,
                           .layout = layout_of(values, form, scaling)};
    const bool in_blocks = scaling == gpu::Fp8Scaling::blocks;
    if (form == gpu::Fp8Form::as_stored) {
      const gpu::QuantiseFp8 quantise = {of, in_blocks ? kFp8TileChannels : 1, kFp8TileChannels};
      call.blocks(quantise.num_blocks(), quantise);
    } else {
      const gpu::QuantiseTransposedFp8 quantise = {of, in_blocks};
      call.blocks(quantise.num_blocks(), quantise, gpu::QuantiseTransposedFp8::kNumFloats);
    }
  }

  std::shared_ptr<Machine> machine_;
  Fp8Scale kind_;
};

}  // namespace cadre
