// SPDX-License-Identifier: Apache-2.0
// The two ends of a model: token ids to rows, and rows to logits and losses.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "layers/nn/linear.hpp"

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

// The end of a model: rows to logits, logits and targets to losses.

// In fp64, in the order of the tokens. `weights`, f32[T] in host memory, multiply the losses; undefined: all are 1.
double sum_of_losses(const Tensor& losses, const Tensor& weights = {});

class Head {
 public:
  // Parameter `<prefix>.weight` [V,H].
  Head(const std::string& prefix, int64_t hidden, int64_t vocabulary, double init_std);
  // The embedding table of the model, which must outlive this; it is no parameter of the head.
  explicit Head(Parameter& table) : weight_(table) {}
  Head(const Head&) = delete;
  Head& operator=(const Head&) = delete;

  struct Saved {
    Tensor x;
    Tensor logits;  // input_grad overwrites them by their gradient
    Tensor targets;
    Tensor weights;
  };

  // x [T,H] to logits [T,V], for inference.
  Tensor logits(Context& ctx, const Tensor& x) const;
  // losses [T] = -log p(target), unweighted; 0 where the target is -1. targets i32[T]; weights as in sum_of_losses.
  Tensor forward(Context& ctx, const Tensor& x, const Tensor& targets, Saved& saved, const Tensor& weights = {}) const;
  // Gradient of scale times sum_of_losses; scale is 1 / (sum of the weights in the global batch).
  Tensor input_grad(Context& ctx, Saved& saved, double scale) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

  Parameter& weight() { return weight_; }

 private:
  std::optional<Parameter> own_;
  Parameter& weight_;
};

}  // namespace cadre
