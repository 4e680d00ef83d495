// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/embedding.hpp"

namespace cadre {

Embedding::Embedding(const std::string& prefix, int64_t vocabulary, int64_t hidden, double init_std)
    : table_(make_weight({{prefix + ".weight", vocabulary}}, hidden, init_std)) {}

Tensor Embedding::forward(Context& ctx, const Tensor& ids, Saved& saved) const {
  const Tensor y = ctx.arena.take("embedding", ctx.dtype, {ids.dim(0), table_.value.dim(1)});
  saved.ids = ids;
  ctx.kernels.embedding(ids, table_.value, y);
  return y;
}

void Embedding::input_grad(Context&, Saved& saved, const Tensor& dy) const { saved.dy = dy; }

void Embedding::weight_grad(Context& ctx, const Saved& saved) {
  ctx.kernels.embedding_grad(saved.ids, saved.dy, cleared_grad(ctx.kernels, table_));
}

}  // namespace cadre
