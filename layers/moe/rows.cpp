// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/rows.hpp"

#include "layers/tensor/tensor.hpp"

namespace cadre {

Tensor weight_tensor(const Context& ctx, std::span<const double> weights) {
  if (weights.empty()) return {};
  const Tensor tensor = ctx.arena.take_host("experts", ctx.dtype, {static_cast<int64_t>(weights.size())});
  for (int64_t i = 0; !ctx.arena.is_dry_run() && i < tensor.numel(); ++i) set_element(tensor, i, weights[i]);
  return tensor;
}

Elements KernelRowAdder::add_at_experts(const RowSums& sums) {
  const int64_t width = into_.dim(1);
  const Tensor results = ctx_.arena.take("experts", ctx_.dtype, {static_cast<int64_t>(sums.offsets.size()) - 1, width});
  ctx_.kernels.sum_rows(rows_of(sums.rows, ctx_.dtype, width), index_tensor(sums.offsets), index_tensor(sums.index),
                        weight_tensor(ctx_, sums.weights), results);
  Elements elements = elements_of(results);
  elements.owner = ctx_.arena.owner();
  return elements;
}

Request KernelRowAdder::add_at_tokens(const RowSums& sums) {
  const Rows rows = rows_of(sums.rows, ctx_.dtype, into_.dim(1));
  ctx_.kernels.sum_rows(rows, index_tensor(sums.offsets), index_tensor(sums.index), weight_tensor(ctx_, sums.weights),
                        into_);
  if (!each_.defined()) return {};
  ctx_.kernels.gather_rows(rows, index_tensor(sums.index), Tensor(), each_);
  return ctx_.kernels.launched();
}

}  // namespace cadre
