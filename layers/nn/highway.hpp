// SPDX-License-Identifier: Apache-2.0
// A feed-forward network behind a gate (highway, Srivastava et al. 2015): y = g FFN(x) + (1 - g) x, g = sigmoid(W x).
#pragma once

#include <string>

#include "layers/nn/ffn.hpp"

namespace cadre {

class HighwayFfn {
 public:
  // The parameters of an Ffn with that prefix, and `<prefix>.highway.weight` [H,H].
  HighwayFfn(const std::string& prefix, const FfnOptions& options);

  struct Saved {
    Ffn::Saved ffn;
    Linear::Saved gate;
    Tensor x, inner, g;  // [T,H]
  };

  Tensor forward(Context& ctx, const Tensor& x, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

 private:
  Ffn ffn_;
  Linear gate_;
};

}  // namespace cadre
