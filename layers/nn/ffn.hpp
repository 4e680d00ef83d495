// SPDX-License-Identifier: Apache-2.0
// The feed-forward network of a dense layer, of a shared expert and of every routed expert; with a highway gate, too.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "layers/nn/linear.hpp"

namespace cadre {

// "relu", "gelu" or "silu", as hidden_act names them. Throws on anything else.
Activation activation_named(const std::string& name);

// What files call the projections: `<prefix>.<name>.weight`.
struct FfnNames {
  std::string_view gate = "gate_proj";
  std::string_view up = "up_proj";
  std::string_view down = "down_proj";
};

struct FfnOptions {
  int64_t hidden = 0;
  int64_t width = 0;
  Activation activation = Activation::silu;
  bool gated = true;
  double init_std = 0.02;
  Placement placement = Placement::shared;
  FfnNames names = {};
};

// Between the two products: [T,2F] with a gate or [T,F] to [T,F], and the gradient back, for which d_inner is room too.
Tensor activate(Context& ctx, const FfnOptions& options, const Tensor& up_out);
Tensor activate_grad(Context& ctx, const FfnOptions& options, const Tensor& up_out, const Tensor& d_inner);

// Gated: down(f(gate x) up x), with silu SwiGLU, where gate and up are one fused weight [2F,H] with the parts
// `<prefix>.gate_proj.weight` and `<prefix>.up_proj.weight`. Else down(f(up x)) with `<prefix>.up_proj.weight` [F,H].
// Both: `<prefix>.down_proj.weight` [H,F]. FfnOptions::names may have other names.
class Ffn {
 public:
  Ffn(const std::string& prefix, const FfnOptions& options);

  struct Saved {
    Linear::Saved up;
    Tensor up_out;  // before the activation: [T,2F] with a gate, else [T,F]
    Linear::Saved down;
  };

  Tensor forward(Context& ctx, const Tensor& x, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  // The same two with memory of the caller's.
  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const;
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);
  // Moves on whenever one of its weights changes.
  uint64_t version() const { return up_.weight().version + down_.weight().version; }

 private:
  FfnOptions options_;
  Linear up_;  // with the gate in front when gated
  Linear down_;
};

// A feed-forward network behind a gate (highway, Srivastava et al. 2015): y = g FFN(x) + (1 - g) x, g = sigmoid(W x).
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
