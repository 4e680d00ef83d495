// SPDX-License-Identifier: Apache-2.0
// The whole list of kernels on a Machine (call.hpp says what that is): f32 tensors, accumulation in fp32, fixed orders
// of addition. Products with weights: weight_products.hpp. Where those are narrower than fp32, those of attention are in bf16. The device's machine is cuda_machine.cuh; tests have one that is a
// host.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "layers/kernels/gpu/attention.hpp"
#include "layers/kernels/gpu/call.hpp"
#include "layers/kernels/gpu/row_codec.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {

template <class Machine>
class GpuKernels final : public Kernels {
 public:
  // `fp32`: the same with products in fp32; null where these are.
  GpuKernels(std::string_view name, std::shared_ptr<Machine> machine, std::unique_ptr<GroupedWeightProducts> products,
             std::unique_ptr<GpuKernels> fp32 = nullptr, bool in_fp8 = false)
      : name_(name),
        machine_(std::move(machine)),
        codec_(machine_),
        products_(std::move(products)),
        fp32_(std::move(fp32)),
        in_fp8_(in_fp8) {}

  std::string_view name() const override { return name_; }
  Memory& memory() const override { return machine_->memory(); }
  Request launched() const override { return machine_->launched(); }
  void* queue() const override { return machine_->queue(); }
  const RowCodec* device_codec() const override { return &codec_; }
  const Kernels& fp32() const override { return fp32_ ? *fp32_ : *this; }
  const Kernels& without_fp8() const override { return in_fp8_ ? fp32() : *this; }
  std::unique_ptr<DeviceClock> make_clock() const override { return machine_->make_clock(); }

  // kernels_elements_inl.hpp
  void copy(const Tensor& src, const Tensor& dst) const override;
  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override;
  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override;
  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override;
  bool groups_products() const override { return true; }
  void grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const override;
  void grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const override;
  void grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                  Accumulate accumulate) const override;
  void activation(Activation kind, const Tensor& x, const Tensor& y) const override;
  void activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const override;
  void swiglu(const Tensor& gate_up, const Tensor& y) const override;
  void swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const override;
  void add(const Tensor& a, const Tensor& b, const Tensor& out) const override;
  void scaled_sum(double alpha, const Tensor& a, double beta, const Tensor& b, const Tensor& out) const override;
  void blend(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& out) const override;
  void blend_grad(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& dout, const Tensor& dg,
                  const Tensor& da, const Tensor& db) const override;
  void sigmoid(const Tensor& x, const Tensor& y) const override;
  void clip(double limit, const Tensor& x, const Tensor& y) const override;
  void clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const override;
  void sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override;
  double sum_squares(const Tensor& x) const override;
  void adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
             const Tensor& v) const override;

  // kernels_rows_inl.hpp
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
  void softmax(const Tensor& x, const Tensor& y) const override;
  void softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override;
  void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const override;
  void cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                          const Tensor& dlogits) const override;
  void top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const override;
  bool can_route(const RouteRule& rule, int64_t num_experts) const override;
  void route(const RouteRule& rule, const Tensor& logits, const Tensor& bias, const RouteResult& result) const override;
  void route_grad(const RouteRule& rule, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                  const RouteSlopes& slopes, const Tensor& dlogits) const override;
  void embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const override;
  void embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const override;
  void gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const override;
  void sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                const Tensor& dst) const override;
  void dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                const Tensor& out) const override;

  // kernels_attention_inl.hpp
  void rope(const Tensor& x, const Tensor& positions, const Rope& rope, RopeDirection direction) const override;
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                 const Tensor& lse) const override;
  void attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                      const Tensor& lse, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                      const Tensor& dv) const override;
  void copy_columns(const Columns& src, const Columns& dst) const override;
  void sum_columns(const Columns& src, const Columns& dst) const override;
  void head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const override;
  void head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const override;

 private:
  // Few rows of queries, as in decoding, read keys that were rounded no faster than those that were not.
  bool attends_in_bf16(const AttentionShape& shape) const {
    return fp32_ && shape.q_len * shape.num_heads / shape.num_kv_heads >= gpu::kNarrowRows;
  }

  // What `body` launches, from operands in place to results back home.
  template <class Body>
  void run(Body&& body) const {
    gpu::Call<Machine> call(*machine_);
    std::forward<Body>(body)(call);
    call.finish();
  }

  std::string_view name_;
  std::shared_ptr<Machine> machine_;
  gpu::DeviceCodec<Machine> codec_;
  std::unique_ptr<GroupedWeightProducts> products_;
  std::unique_ptr<GpuKernels> fp32_;
  bool in_fp8_;
};

namespace gpu {

// A tensor seen as rows along its last axis.
inline int64_t width_of(const Tensor& tensor) { return tensor.dim(tensor.num_dims() - 1); }
inline int64_t num_rows_of(const Tensor& tensor) { return tensor.numel() == 0 ? 0 : tensor.numel() / width_of(tensor); }

}  // namespace gpu
}  // namespace cadre
