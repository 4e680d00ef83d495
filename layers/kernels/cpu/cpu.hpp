// SPDX-License-Identifier: Apache-2.0
// The CPU back end, private to its own .cpp files: f32 tensors; the threads of the rank share the work of each call. Vector
// loops are Highway's, compiled for several instruction sets and chosen at run time. The same call gives the same bits on
// any number of threads; outside of products and attention the result of a row does not depend on the rows around it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre {

// Which instructions of the CPU the back end uses. The environment variable CADRE_MAX_CPU_ISA = SSE4, AVX2, AVX512 or
// AVX512_BF16 forbids everything newer, so that one machine can show what another computes; OpenBLAS and oneDNN have
// OPENBLAS_CORETYPE and ONEDNN_MAX_CPU_ISA for that.

// Obeys CADRE_MAX_CPU_ISA from the next vector loop on. Throws Error where its value is none of the four, or where the CPU
// is not an x86. Programs call it before they make kernels.
void apply_cpu_limit();

// Whether the CPU has instructions that multiply bf16 (x86: AVX512_BF16), and the limit allows them.
bool cpu_multiplies_bf16();

// Highway's name of the instruction set that vector loops use now: SSE4, AVX2, AVX3 (that is AVX-512), NEON, ...
std::string_view cpu_vector_target();

class CpuKernels final : public Kernels {
 public:
  CpuKernels(Precision precision, const CpuOptions& options);
  // On one thread.
  explicit CpuKernels(std::unique_ptr<WeightProducts> products);

  std::string_view name() const override { return "cpu"; }
  bool rows_independent() const override { return rows_independent_; }
  const Kernels& fp32() const override { return fp32_ ? *fp32_ : *this; }
  const Kernels& without_fp8() const override { return in_fp8_ ? fp32() : *this; }

  // cpu.cpp
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
  void sigmoid(const Tensor& x, const Tensor& y) const override;
  void clip(double limit, const Tensor& x, const Tensor& y) const override;
  void clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const override;
  void sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override;

  // rope.cpp, attention.cpp
  void rope(const Tensor& x, const Tensor& positions, const Rope& rope, RopeDirection direction) const override;
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                 const Tensor& lse) const override;
  void attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                      const Tensor& lse, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                      const Tensor& dv) const override;

  // cpu.cpp
  void copy_columns(const Columns& src, const Columns& dst) const override;
  void sum_columns(const Columns& src, const Columns& dst) const override;
  void scale_columns(double factor, const Columns& src, const Columns& dst, Accumulate accumulate) const override;
  void head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const override;
  void head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const override;

  // softmax.cpp, which has top_k too
  void softmax(const Tensor& x, const Tensor& y) const override;
  void softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const override;
  void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const override;
  void cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                          const Tensor& dlogits) const override;
  void top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const override;

  // rows.cpp
  void embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const override;
  void embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const override;
  void gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const override;
  void sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                const Tensor& dst) const override;
  void dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                const Tensor& out) const override;

  // optimizer.cpp
  double sum_squares(const Tensor& x) const override;
  void adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
             const Tensor& v) const override;

 private:
  std::unique_ptr<ThreadPool> own_threads_;  // where the options have none
  ThreadPool& threads_;
  ProductChoice choice_;
  const WeightProducts& products_for(const Parameter& weight) const;

  std::unique_ptr<WeightProducts> products_;
  std::unique_ptr<WeightProducts> fixed_;  // of weights that are not in fp32
  std::unique_ptr<CpuKernels> fp32_;       // the same with products in fp32; null where these are
  bool in_fp8_;
  bool rows_independent_ = false;
};

namespace cpu {

// A tensor seen as rows along its last axis.
inline size_t width_of(const Tensor& tensor) { return static_cast<size_t>(tensor.dim(tensor.num_dims() - 1)); }
inline size_t num_rows_of(const Tensor& tensor) {
  return tensor.numel() == 0 ? 0 : static_cast<size_t>(tensor.numel()) / width_of(tensor);
}
inline size_t count_of(const Tensor& tensor) { return static_cast<size_t>(tensor.numel()); }

// The data of an optional tensor.
inline const float* data_or_null(const Tensor& tensor) { return tensor.defined() ? tensor.data<float>() : nullptr; }

// Room for `count` floats that belongs to this thread until its next call. Contents undefined, aligned to 64 bytes.
float* scratch_floats(size_t count);
// The same for one part of a call, on whichever thread: beside what the call itself has.
float* part_scratch(size_t count);

// Calls body(first, count) for pieces of [0, count) rows of `width` elements, on the threads of the pool.
template <class Body>
void for_pieces(ThreadPool& threads, size_t count, size_t width, const Body& body) {
  constexpr size_t kElements = 1 << 15;  // 10 us of an element-wise loop; more than it takes to wake a thread
  const size_t piece = std::max<size_t>(1, kElements / std::max<size_t>(1, width));
  threads.run(static_cast<int64_t>((count + piece - 1) / piece), [&](int64_t i) {
    const size_t first = static_cast<size_t>(i) * piece;
    body(first, std::min(piece, count - first));
  });
}

}  // namespace cpu

}  // namespace cadre
