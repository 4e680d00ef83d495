// SPDX-License-Identifier: Apache-2.0
// The convention that all modules follow, and the simplest module: a product with a weight, and a bias where asked for,
// y = x W^T + b.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/kernels/kernels.hpp"
#include "layers/tensor/arena.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

// What every module has, by convention and not by inheritance:
//
//   struct Saved { ... };                                          what forward keeps for backward, views into the arena
//   Tensor forward(Context&, const Tensor& x, Saved&) const;       input -> output
//   Tensor input_grad(Context&, Saved&, const Tensor& dy) const;   output gradient -> input gradient; keeps in Saved what
//                                                                  the weight gradient will need
//   void weight_grad(Context&, const Saved&);                      adds to the gradients of its parameters; any time after
//                                                                  input_grad, so it can fill a wait
//   void each_parameter(const ParameterVisitor&);                  every parameter, in a fixed order
//
// Where a module needs more than x (ids, targets, positions) they are further arguments in the same places. A
// constructor sets names, shapes and initial values of the parameters and allocates nothing; a ParameterStore gives
// them memory, and from then on the module must not move. Every tensor that a module returns or saves is taken from
// ctx.arena: forward's live until the micro-batch is done, input_grad's until the caller releases its mark. A module
// without parameters has no weight_grad.

// The rows that dropout is drawn for: row r is that of token rows[r] of the global batch of a step, on whichever rank it is.
struct DropoutRows {
  uint64_t seed = 0;
  int64_t step = 0;
  Tensor rows = {};  // i64[T] in host memory; undefined: no dropout
};

// What the backward pass computes again instead of keeping it: the same bits from less memory, because a forward pass changes
// nothing that it reads.
struct Recompute {
  bool activations = false;  // outputs of activation functions
  bool mla_up = false;       // queries, keys and values of latent attention, from its latent vectors
  bool attention = false;    // attention and the norm beside it, from the input of the layer
  int every_layer = 0;       // layers whose index is a multiple keep their input alone; 0: no layer

  bool whole_layer(int64_t layer) const { return every_layer > 0 && layer % every_layer == 0; }
};

// What a module needs to run: the back end, the memory of the micro-batch, the element type of activations.
struct Context {
  const Kernels& kernels;
  Arena& arena;
  DType dtype = DType::f32;
  Recompute recompute = {};
  DropoutRows dropout = {};

  // The same with products in fp32, as all of a router are.
  Context fp32() const { return {kernels.fp32(), arena, dtype, recompute}; }
};

// The same values where the host may use them too, behind the kernels before: there, or in a copy.
inline Tensor host_side(Context& ctx, std::string_view label, const Tensor& tensor) {
  if (ctx.kernels.memory().is_on_host()) return tensor;
  const Tensor copy = ctx.arena.take_result(label, tensor.dtype(), {tensor.dim(0), tensor.row_numel()});
  ctx.kernels.copy(tensor, copy);
  return copy;
}

// Calls `write(accumulate)` so that the first gradient of a step overwrites and the later ones add: gradients need no
// pass that clears them. Does nothing where there is no gradient. For kernels that only add, see cleared_grad.
template <class Write>
void write_grad(Parameter& parameter, Write&& write) {
  const Accumulate accumulate = parameter.grad_is_zero ? Accumulate::no : Accumulate::yes;
  if (!parameter.grad.defined()) return;
  parameter.grad_is_zero = false;
  std::forward<Write>(write)(accumulate);
}

// The gradient, filled with zeros first when this is the first gradient of the step: for kernels that only add.
inline const Tensor& cleared_grad(const Kernels& kernels, Parameter& parameter) {
  if (parameter.grad_is_zero) kernels.memory().fill(parameter.grad.raw(), std::byte{0}, parameter.grad.bytes());
  parameter.grad_is_zero = false;
  return parameter.grad;
}

// What an adapter keeps between the passes.
struct LowRankSaved {
  DropoutRows dropout;     // of the forward pass
  std::vector<Tensor> dh;  // [T,rank] of each addition
};

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
    LowRankSaved low_rank;
  };

  Tensor forward(Context& ctx, const Tensor& x, Saved& saved) const;  // x [T,in], y [T,out]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  // The same two with memory of the caller's; yes adds to `dx`, for an input that several products share.
  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const;
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx, Accumulate accumulate) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit) {
    visit(weight_);
    for (LowRank& added : weight_.low_rank) {
      visit(added.a);
      visit(added.b);
    }
    if (bias_) visit(*bias_);
  }

  const Parameter& weight() const { return weight_; }

 private:
  void add_bias(Context& ctx, const Tensor& y) const;

  Parameter weight_;
  std::optional<Parameter> bias_;
};

}  // namespace cadre
