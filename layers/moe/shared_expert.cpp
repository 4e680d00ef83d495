// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/shared_expert.hpp"

#include <numeric>
#include <vector>

#include "layers/moe/rows.hpp"

namespace cadre {
namespace {

std::vector<int32_t> every_row(int64_t num_rows) {
  std::vector<int32_t> index(static_cast<size_t>(num_rows));
  std::iota(index.begin(), index.end(), 0);
  return index;
}

// Row t of the result = weights[t] rows[t].
Tensor weighted(Context& ctx, const Tensor& rows, const Tensor& weights) {
  const Tensor out = ctx.arena.take("moe", ctx.dtype, {rows.dim(0), rows.dim(1)});
  ctx.kernels.gather_rows(rows, index_tensor(every_row(rows.dim(0))), weights, out);
  return out;
}

Tensor scaled(Context& ctx, const Tensor& rows, double scale) {
  if (scale == 1.0) return rows;
  return weighted(ctx, rows, weight_tensor(ctx, std::vector<double>(static_cast<size_t>(rows.dim(0)), scale)));
}

}  // namespace

SharedExpert::SharedExpert(const std::string& prefix, const SharedExpertOptions& options)
    : scale_(options.scale), ffn_(prefix, options.ffn) {
  if (!options.gate_name.empty()) gate_.emplace(options.gate_name, options.ffn.hidden, 1, options.ffn.init_std);
}

Tensor SharedExpert::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  const Tensor inner = ffn_.forward(ctx, x, saved.ffn);
  if (!gate_) return scaled(ctx, inner, scale_);
  Context products = ctx.fp32();
  saved.inner = inner;
  saved.g = ctx.arena.take("moe", ctx.dtype, {x.dim(0), 1});
  ctx.kernels.sigmoid(gate_->forward(products, x, saved.gate), saved.g);
  return weighted(ctx, inner, saved.g.reshape({x.dim(0)}));
}

Tensor SharedExpert::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  if (!gate_) return ffn_.input_grad(ctx, saved.ffn, scaled(ctx, dy, scale_));
  const int64_t num_rows = dy.dim(0);
  const Tensor dx = ffn_.input_grad(ctx, saved.ffn, weighted(ctx, dy, saved.g.reshape({num_rows})));
  const Tensor dg = ctx.arena.take("moe", ctx.dtype, {num_rows, 1});
  const std::vector<int32_t> index = every_row(num_rows);
  ctx.kernels.dot_rows(dy, index_tensor(index), saved.inner, index_tensor(index), dg.reshape({num_rows}));
  ctx.kernels.sigmoid_grad(saved.g, dg, dg);
  Context products = ctx.fp32();
  gate_->input_grad_into(products, saved.gate, dg, dx, Accumulate::yes);
  return dx;
}

void SharedExpert::weight_grad(Context& ctx, const Saved& saved) {
  ffn_.weight_grad(ctx, saved.ffn);
  Context products = ctx.fp32();
  if (gate_) gate_->weight_grad(products, saved.gate);
}

void SharedExpert::each_parameter(const ParameterVisitor& visit) {
  ffn_.each_parameter(visit);
  if (gate_) gate_->each_parameter(visit);
}

}  // namespace cadre
