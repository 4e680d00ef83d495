// SPDX-License-Identifier: Apache-2.0
// The end of a model: rows to logits, logits and targets to losses.
#pragma once

#include <string>

#include "layers/nn/linear.hpp"

namespace cadre {

// Parameter `<prefix>.weight` [V,H].
class Head {
 public:
  Head(const std::string& prefix, int64_t hidden, int64_t vocabulary, double init_std);

  struct Saved {
    Linear::Saved projection;
    Tensor logits;  // input_grad overwrites them by their gradient
    Tensor targets;
  };

  // x [T,H] to logits [T,V], for inference.
  Tensor logits(Context& ctx, const Tensor& x) const;
  // losses [T] = -log p(target); 0 where the target is -1. targets i32[T].
  Tensor forward(Context& ctx, const Tensor& x, const Tensor& targets, Saved& saved) const;
  // Gradient of scale times the sum of the losses; scale is 1 / (tokens of the global batch).
  Tensor input_grad(Context& ctx, Saved& saved, double scale) const;
  void weight_grad(Context& ctx, const Saved& saved) { projection_.weight_grad(ctx, saved.projection); }
  void each_parameter(const ParameterVisitor& visit) { projection_.each_parameter(visit); }

 private:
  Linear projection_;
};

}  // namespace cadre
