// SPDX-License-Identifier: Apache-2.0
// Token ids to rows.
#pragma once

#include <string>

#include "layers/nn/module.hpp"

namespace cadre {

// Parameter `<prefix>.weight` [V,H].
class Embedding {
 public:
  Embedding(const std::string& prefix, int64_t vocabulary, int64_t hidden, double init_std);

  struct Saved {
    Tensor ids;
    Tensor dy;
  };

  Tensor forward(Context& ctx, const Tensor& ids, Saved& saved) const;  // ids i32[T], y [T,H]
  // Ids have no gradient: this only keeps dy.
  void input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit) { visit(table_); }

  Parameter& table() { return table_; }

 private:
  Parameter table_;
};

}  // namespace cadre
