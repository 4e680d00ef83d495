// SPDX-License-Identifier: Apache-2.0
// A product with a weight, and a bias where asked for: y = x W^T + b.
#pragma once

#include <optional>
#include <string>

#include "layers/nn/module.hpp"

namespace cadre {

class Linear {
 public:
  enum class Bias { none, added };

  // Parameters `<prefix>.weight` [out, in] and with Bias::added `<prefix>.bias` [out], zeros at first.
  Linear(const std::string& prefix, int64_t in, int64_t out, double init_std, Bias bias = Bias::none);
  // A weight made elsewhere: one with several parts, or one that belongs to an expert.
  explicit Linear(Parameter weight);

  struct Saved {
    Tensor x;
    Tensor dy;
    Tensor d_bias;  // [1,out]
  };

  Tensor forward(Context& ctx, const Tensor& x, Saved& saved) const;  // x [T,in], y [T,out]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  // The same two with memory of the caller's; yes adds to `dx`, for an input that several products share.
  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const;
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx, Accumulate accumulate) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit) {
    visit(weight_);
    if (bias_) visit(*bias_);
  }

  const Parameter& weight() const { return weight_; }

 private:
  void add_bias(Context& ctx, const Tensor& y) const;

  Parameter weight_;
  std::optional<Parameter> bias_;
};

}  // namespace cadre
