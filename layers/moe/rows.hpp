// SPDX-License-Identifier: Apache-2.0
// Rows of an exchange as the kernels read them: base and stride, indices as tensors; and the sums of a combine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/exchange/dispatch.hpp"
#include "layers/nn/linear.hpp"

namespace cadre {

// A view of the indices.
inline Tensor index_tensor(std::span<const int32_t> index) {
  return {const_cast<int32_t*>(index.data()), DType::i32, {static_cast<int64_t>(index.size())}};
}

inline Rows rows_of(const Elements& elements, DType dtype, int64_t width) {
  return {elements.base, static_cast<int64_t>(elements.stride), dtype, width};
}

inline Elements elements_of(const Tensor& rows) { return {rows.raw(), rows.row_bytes()}; }

// [weights] in the element type of ctx, from its arena; undefined where there are none.
Tensor weight_tensor(const Context& ctx, std::span<const double> weights);

// Adds up with ctx.kernels; sums at the experts are taken from ctx.arena.
class KernelRowAdder : public RowAdder {
 public:
  // into [T,W]. `each` [slots,W], where defined, gets the rows themselves as they arrive, in the order of (token, k).
  KernelRowAdder(const Context& ctx, Tensor into, Tensor each = {}) : ctx_(ctx), into_(into), each_(each) {}

  Request computed() override { return ctx_.kernels.launched(); }
  Elements add_at_experts(const RowSums& sums) override;
  Request add_at_tokens(const RowSums& sums) override;

 private:
  Context ctx_;
  Tensor into_, each_;
};

}  // namespace cadre
