// SPDX-License-Identifier: Apache-2.0
// A back end whose router leaves some slots without an expert (-1), as a capacity limit would: everything else is done
// by the back end it wraps. Which slots depends on the scores of their token alone, and so on no rank. f32.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::test {

class MaskingKernels final : public Kernels {
 public:
  explicit MaskingKernels(std::unique_ptr<Kernels> kernels) : kernels_(std::move(kernels)) {}

  std::string_view name() const override { return "masking"; }
  Memory& memory() const override { return kernels_->memory(); }
  Request launched() const override { return kernels_->launched(); }
  void copy(const Tensor& src, const Tensor& dst) const override { kernels_->copy(src, dst); }

  // One token of eight loses all its slots; of the others, half of the slots are masked.
  void top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const override {
    kernels_->top_k(scores, bias, ids);
    const int64_t num_chosen = ids.dim(1);
    for (int64_t t = 0; t < ids.dim(0); ++t) {
      int32_t* chosen = ids.data<int32_t>() + t * num_chosen;
      const bool all = bits_of(scores, t, chosen[0]) % 8 == 0;
      for (int64_t k = 0; k < num_chosen; ++k) {
        if (all || bits_of(scores, t, chosen[k]) % 2 == 1) chosen[k] = -1;
      }
    }
  }

  // What a mixture-of-experts layer calls.
  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    kernels_->linear(x, weight, y);
  }
  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    kernels_->linear_input_grad(dy, weight, dx, accumulate);
  }
  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    kernels_->linear_weight_grad(x, dy, dw, accumulate);
  }
  void activation(Activation kind, const Tensor& x, const Tensor& y) const override {
    kernels_->activation(kind, x, y);
  }
  void activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const override {
    kernels_->activation_grad(kind, x, dy, dx);
  }
  void swiglu(const Tensor& gate_up, const Tensor& y) const override { kernels_->swiglu(gate_up, y); }
  void swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const override {
    kernels_->swiglu_grad(gate_up, dy, d_gate_up);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& out) const override { kernels_->add(a, b, out); }
  void clip(double limit, const Tensor& x, const Tensor& y) const override { kernels_->clip(limit, x, y); }
  void clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const override {
    kernels_->clip_grad(limit, x, dy, dx);
  }
  void softmax(const Tensor& x, const Tensor& y) const override { kernels_->softmax(x, y); }
  void softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override {
    kernels_->softmax_grad(y, dy, dx);
  }
  void sigmoid(const Tensor& x, const Tensor& y) const override { kernels_->sigmoid(x, y); }
  void sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override {
    kernels_->sigmoid_grad(y, dy, dx);
  }
  void gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const override {
    kernels_->gather_rows(src, index, scale, dst);
  }
  void sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                const Tensor& dst) const override {
    kernels_->sum_rows(src, offsets, index, weight, dst);
  }
  void dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                const Tensor& out) const override {
    kernels_->dot_rows(a, a_index, b, b_index, out);
  }

  // What it does not.
  double sum_squares(const Tensor& /*x*/) const override { return unused(); }
  void blend(const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override { unused(); }
  void blend_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                  const Tensor&) const override {
    unused();
  }
  void rms_norm(const Tensor&, const Tensor&, double, const Tensor&, const Tensor&) const override { unused(); }
  void rms_norm_input_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {
    unused();
  }
  void rms_norm_weight_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override { unused(); }
  void layer_norm(const Tensor&, const Tensor&, const Tensor&, double, const Tensor&, const Tensor&,
                  const Tensor&) const override {
    unused();
  }
  void layer_norm_input_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                             const Tensor&) const override {
    unused();
  }
  void layer_norm_weight_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&) const override {
    unused();
  }
  void rope(const Tensor&, const Tensor&, const Rope&, RopeDirection) const override { unused(); }
  void copy_columns(const Columns&, const Columns&) const override { unused(); }
  void sum_columns(const Columns&, const Columns&) const override { unused(); }
  void head_linear(const Tensor&, const HeadRows&, const Tensor&) const override { unused(); }
  void head_linear_transposed(const Tensor&, const HeadRows&, const Tensor&) const override { unused(); }
  void attention(const AttentionShape&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                 const Tensor&) const override {
    unused();
  }
  void attention_grad(const AttentionShape&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {
    unused();
  }
  void embedding(const Tensor&, const Tensor&, const Tensor&) const override { unused(); }
  void embedding_grad(const Tensor&, const Tensor&, const Tensor&) const override { unused(); }
  void cross_entropy(const Tensor&, const Tensor&, const Tensor&) const override { unused(); }
  void cross_entropy_grad(const Tensor&, const Tensor&, double, const Tensor&) const override { unused(); }
  void scaled_sum(double, const Tensor&, double, const Tensor&, const Tensor&) const override { unused(); }
  void adamw(const AdamWStep&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override { unused(); }

 private:
  static uint32_t bits_of(const Tensor& scores, int64_t token, int32_t expert) {
    uint32_t bits = 0;
    std::memcpy(&bits, scores.data<float>() + token * scores.dim(1) + expert, sizeof bits);
    return bits;
  }
  [[noreturn]] static double unused() { throw Error(ErrorKind::internal, "a layer of experts does not call this"); }

  std::unique_ptr<Kernels> kernels_;
};

}  // namespace cadre::test
