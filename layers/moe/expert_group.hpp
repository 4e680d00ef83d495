// SPDX-License-Identifier: Apache-2.0
// The routed experts of a rank that are feed-forward networks of one shape, all at once: each of their products is one call
// for all rows, ragged and without padding. For back ends that Kernels::groups_products.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers/nn/ffn.hpp"

namespace cadre {

class ExpertGroup {
 public:
  // `weights` are those of each network: the first product's, then the second's.
  ExpertGroup(const FfnOptions& options, std::span<Parameter* const> weights);

  struct Saved {
    std::vector<int32_t> offsets;  // [experts + 1]: expert e works on rows offsets[e] .. offsets[e+1]
    Tensor x, up_out, inner;       // [S,H], [S,2F] or [S,F], [S,F]
    Tensor dy, d_up_out;
  };

  // x, y, dy, dx [S,H]; the offsets in `saved` are the caller's.
  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const;
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const;
  void weight_grad(Context& ctx, const Saved& saved);

 private:
  FfnOptions options_;
  std::vector<Parameter*> up_, down_;  // of each expert
};

}  // namespace cadre
