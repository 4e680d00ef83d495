// SPDX-License-Identifier: Apache-2.0
// The reference back end, private to its own .cpp files: plain loops over f32 or f64 tensors, every sum in
// fp64, the result rounded once. Clarity is its only virtue.
#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>

#include "layers/kernels/kernels.hpp"

namespace cadre {

class ReferenceKernels final : public Kernels {
 public:
  std::string_view name() const override { return "reference"; }

  // products.cpp
  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override;
  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override;
  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override;

  // norm.cpp
  void rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& y,
                const Tensor& rstd) const override;
  void rms_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                           const Tensor& dx) const override;
  void rms_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& rstd,
                            const Tensor& dweight) const override;
  void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon, const Tensor& y,
                  const Tensor& mean, const Tensor& rstd) const override;
  void layer_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                             const Tensor& rstd, const Tensor& dx) const override;
  void layer_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                              const Tensor& dweight, const Tensor& dbias) const override;

  // elementwise.cpp
  void activation(Activation kind, const Tensor& x, const Tensor& y) const override;
  void activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const override;
  void swiglu(const Tensor& gate_up, const Tensor& y) const override;
  void swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const override;
  void add(const Tensor& a, const Tensor& b, const Tensor& out) const override;
  void scaled_sum(double alpha, const Tensor& a, double beta, const Tensor& b, const Tensor& out) const override;
  void blend(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& out) const override;
  void blend_grad(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& dout, const Tensor& dg,
                  const Tensor& da, const Tensor& db) const override;
  double sum_squares(const Tensor& x) const override;
  void adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
             const Tensor& v) const override;

  // attention.cpp
  void rope(const Tensor& x, const Tensor& positions, const Rope& rope, RopeDirection direction) const override;
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                 const Tensor& lse) const override;
  void attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                      const Tensor& lse, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                      const Tensor& dv) const override;

  // columns.cpp
  void copy_columns(const Columns& src, const Columns& dst) const override;
  void sum_columns(const Columns& src, const Columns& dst) const override;
  void head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const override;
  void head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const override;

  // vocabulary.cpp
  void embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const override;
  void embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const override;
  void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const override;
  void cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                          const Tensor& dlogits) const override;

  // routing.cpp
  void softmax(const Tensor& x, const Tensor& y) const override;
  void softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override;
  void sigmoid(const Tensor& x, const Tensor& y) const override;
  void clip(double limit, const Tensor& x, const Tensor& y) const override;
  void clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const override;
  void sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override;
  void top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const override;
  void gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const override;
  void sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                const Tensor& dst) const override;
  void dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                const Tensor& out) const override;
};

namespace reference {

// Calls `body(std::type_identity<T>{})` with T the element type of `tensor`: float or double.
template <class Body>
void dispatch(const Tensor& tensor, Body&& body) {
  switch (tensor.dtype()) {
    case DType::f32: return body(std::type_identity<float>{});
    case DType::f64: return body(std::type_identity<double>{});
    default: throw Error(ErrorKind::internal, "the reference kernels take f32 or f64, not " + tensor.describe());
  }
}

// A tensor seen as rows along its last axis.
inline int64_t last_dim(const Tensor& tensor) { return tensor.dim(tensor.num_dims() - 1); }
inline int64_t num_last_rows(const Tensor& tensor) {
  return tensor.numel() == 0 ? 0 : tensor.numel() / last_dim(tensor);
}

}  // namespace reference
}  // namespace cadre
