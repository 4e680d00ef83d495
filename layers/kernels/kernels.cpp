// SPDX-License-Identifier: Apache-2.0
// What a back end does that has nothing better: groups of rows one after the other, the clock and the copies of the host.
#include "layers/kernels/kernels.hpp"

#include <cstring>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"

namespace cadre {
namespace {

class HostClock final : public DeviceClock {
 public:
  void start() override { begin_ns_ = trace_clock_ns(); }
  double stop_ms() override { return static_cast<double>(trace_clock_ns() - begin_ns_) * 1e-6; }

 private:
  int64_t begin_ns_ = 0;
};

}  // namespace

std::unique_ptr<DeviceClock> Kernels::make_clock() const { return make_host_clock(); }

std::unique_ptr<DeviceClock> make_host_clock() { return std::make_unique<HostClock>(); }

void Kernels::copy(const Tensor& src, const Tensor& dst) const {
  if (src.bytes() > 0) std::memcpy(dst.raw(), src.raw(), src.bytes());
}

void Kernels::route(const RouteRule&, const Tensor&, const Tensor&, const RouteResult&) const { CADRE_ASSERT(false); }

void Kernels::route_grad(const RouteRule&, const Tensor&, const Tensor&, const Tensor&, const RouteSlopes&,
                         const Tensor&) const {
  CADRE_ASSERT(false);
}

void Kernels::grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const {
  for (const RowGroup& group : groups) {
    linear(x.rows(group.first, group.count), *group.weight, y.rows(group.first, group.count));
  }
}

void Kernels::grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const {
  for (const RowGroup& group : groups) {
    linear_input_grad(dy.rows(group.first, group.count), *group.weight, dx.rows(group.first, group.count),
                      Accumulate::no);
  }
}

void Kernels::grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                         Accumulate accumulate) const {
  for (const RowGroup& group : groups) {
    linear_weight_grad(x.rows(group.first, group.count), dy.rows(group.first, group.count), group.weight->grad,
                       accumulate);
  }
}

// The back end that computes nothing. A dry run passes tensors without memory through the layers to learn the shapes
// and the bytes of a step; no kernel may look at them.

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
  void blend(const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void blend_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                  const Tensor&) const override {}
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
  void sigmoid_grad(const Tensor&, const Tensor&, const Tensor&) const override {}
  void top_k(const Tensor&, const Tensor&, const Tensor&) const override {}
  void gather_rows(const Rows&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void sum_rows(const Rows&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) const override {}
  void dot_rows(const Rows&, const Tensor&, const Rows&, const Tensor&, const Tensor&) const override {}
};

}  // namespace

std::unique_ptr<Kernels> make_null_kernels() { return std::make_unique<NullKernels>(); }

}  // namespace cadre
