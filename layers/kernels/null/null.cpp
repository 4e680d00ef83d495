// SPDX-License-Identifier: Apache-2.0
// The back end that computes nothing. A dry run passes tensors without memory through the layers to learn the shapes
// and the bytes of a step; no kernel may look at them.
#include "layers/kernels/kernels.hpp"

namespace cadre {
namespace {

class NullKernels final : public Kernels {
 public:
  std::string_view name() const override { return "null"; }

  void copy(const Tensor&, const Tensor&) const override {}
  void linear(const Tensor&, const Parameter&, const Tensor&) const override {}
  void linear_input_grad(const Tensor&, const Parameter&, const Tensor&, Accumulate) const override {}
  void linear_weight_grad(const Tensor&, const Tensor&, const Tensor&, Accumulate) const override {}
  void rms_norm(const Tensor&, const Tensor&, double, const Tensor&, const Tensor&) const override {}
  void rms_norm_input_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void rms_norm_weight_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void layer_norm(const Tensor&, const Tensor&, const Tensor&, double, const Tensor&, const Tensor&,
                  const Tensor&) const override {}
  void layer_norm_input_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                             const Tensor&) const override {}
  void layer_norm_weight_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&) const override {}
  void activation(Activation, const Tensor&, const Tensor&) const override {}
  void activation_grad(Activation, const Tensor&, const Tensor&, const Tensor&) const override {}
  void swiglu(const Tensor&, const Tensor&) const override {}
  void swiglu_grad(const Tensor&, const Tensor&, const Tensor&) const override {}
  void add(const Tensor&, const Tensor&, const Tensor&) const override {}
  void scaled_sum(double, const Tensor&, double, const Tensor&, const Tensor&) const override {}
  void blend(const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void blend_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                  const Tensor&) const override {}
  void scale_columns(double, const Columns&, const Columns&, Accumulate) const override {}
  double sum_squares(const Tensor&) const override { return 0.0; }
  void adamw(const AdamWStep&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void rope(const Tensor&, const Tensor&, const Rope&, RopeDirection) const override {}
  void attention(const AttentionShape&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                 const Tensor&) const override {}
  void attention_grad(const AttentionShape&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void copy_columns(const Columns&, const Columns&) const override {}
  void sum_columns(const Columns&, const Columns&) const override {}
  void head_linear(const Tensor&, const HeadRows&, const Tensor&) const override {}
  void head_linear_transposed(const Tensor&, const HeadRows&, const Tensor&) const override {}
  void embedding(const Tensor&, const Tensor&, const Tensor&) const override {}
  void embedding_grad(const Tensor&, const Tensor&, const Tensor&) const override {}
  void cross_entropy(const Tensor&, const Tensor&, const Tensor&) const override {}
  void cross_entropy_grad(const Tensor&, const Tensor&, double, const Tensor&) const override {}
  void softmax(const Tensor&, const Tensor&) const override {}
  void softmax_grad(const Tensor&, const Tensor&, const Tensor&) const override {}
  void sigmoid(const Tensor&, const Tensor&) const override {}
  void clip(double, const Tensor&, const Tensor&) const override {}
  void clip_grad(double, const Tensor&, const Tensor&, const Tensor&) const override {}
  void sigmoid_grad(const Tensor&, const Tensor&, const Tensor&) const override {}
  void top_k(const Tensor&, const Tensor&, const Tensor&) const override {}
  void gather_rows(const Rows&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void sum_rows(const Rows&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void dot_rows(const Rows&, const Tensor&, const Rows&, const Tensor&, const Tensor&) const override {}
};

}  // namespace

std::unique_ptr<Kernels> make_null_kernels() { return std::make_unique<NullKernels>(); }

}  // namespace cadre
