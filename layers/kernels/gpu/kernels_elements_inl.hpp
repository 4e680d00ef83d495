// SPDX-License-Identifier: Apache-2.0
// GpuKernels: products, element-wise functions, the optimiser step, attention and rotary positions.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "layers/kernels/gpu/attention.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/kernels.hpp"
#include "layers/kernels/gpu/norm.hpp"

namespace cadre {

template <class Machine>
void GpuKernels<Machine>::copy(const Tensor& src, const Tensor& dst) const {
  if (src.bytes() > 0) {
    run([&](auto& call) {
      call.copy(call.template in<std::byte>(src), call.template out<std::byte>(dst), src.bytes());
    });
  }
}

template <class Machine>
void GpuKernels<Machine>::linear(const Tensor& x, const Parameter& weight, const Tensor& y) const {
  if (x.dim(0) > 0) products_->linear(x, weight, y);
}

template <class Machine>
void GpuKernels<Machine>::linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                                            Accumulate accumulate) const {
  if (dy.dim(0) > 0) products_->linear_input_grad(dy, weight, dx, accumulate);
}

template <class Machine>
void GpuKernels<Machine>::linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw,
                                             Accumulate accumulate) const {
  if (x.dim(0) > 0) {
    products_->linear_weight_grad(x, dy, dw, accumulate);
  } else if (accumulate == Accumulate::no) {
    run([&](auto& call) { call.elements(dw.numel(), gpu::Zero{call.out(dw)}); });
  }
}

template <class Machine>
void GpuKernels<Machine>::grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const {
  if (x.dim(0) > 0) products_->grouped_linear(x, groups, y);
}

template <class Machine>
void GpuKernels<Machine>::grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const {
  if (dy.dim(0) > 0) products_->grouped_linear_input_grad(dy, groups, dx);
}

template <class Machine>
void GpuKernels<Machine>::grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                                     Accumulate accumulate) const {
  products_->grouped_linear_weight_grad(x, dy, groups, accumulate);
}

template <class Machine>
void GpuKernels<Machine>::activation(Activation kind, const Tensor& x, const Tensor& y) const {
  run([&](auto& call) { call.elements(x.numel(), gpu::Activate{kind, call.in(x), call.out(y)}); });
}

template <class Machine>
void GpuKernels<Machine>::activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const {
  run([&](auto& call) { call.elements(x.numel(), gpu::ActivateGrad{kind, call.in(x), call.in(dy), call.out(dx)}); });
}

template <class Machine>
void GpuKernels<Machine>::swiglu(const Tensor& gate_up, const Tensor& y) const {
  run([&](auto& call) { call.blocks(y.dim(0), gpu::SwiGlu{call.in(gate_up), call.out(y), y.dim(1)}); });
}

template <class Machine>
void GpuKernels<Machine>::swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const {
  run([&](auto& call) {
    call.blocks(dy.dim(0), gpu::SwiGluGrad{call.in(gate_up), call.in(dy), call.out(d_gate_up), dy.dim(1)});
  });
}

template <class Machine>
void GpuKernels<Machine>::add(const Tensor& a, const Tensor& b, const Tensor& out) const {
  run([&](auto& call) { call.elements(out.numel(), gpu::Add{call.in(a), call.in(b), call.out(out)}); });
}

template <class Machine>
void GpuKernels<Machine>::scaled_sum(double alpha, const Tensor& a, double beta, const Tensor& b,
                                     const Tensor& out) const {
  run([&](auto& call) {
    call.elements(out.numel(), gpu::ScaledSum{static_cast<float>(alpha), call.in(a), static_cast<float>(beta),
                                              call.in(b), call.out(out)});
  });
}

template <class Machine>
void GpuKernels<Machine>::blend(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& out) const {
  run([&](auto& call) { call.elements(out.numel(), gpu::Blend{call.in(g), call.in(a), call.in(b), call.out(out)}); });
}

template <class Machine>
void GpuKernels<Machine>::blend_grad(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& dout,
                                     const Tensor& dg, const Tensor& da, const Tensor& db) const {
  run([&](auto& call) {
    call.elements(dout.numel(), gpu::BlendGrad{call.in(g), call.in(a), call.in(b), call.in(dout), call.out(dg),
                                               call.out(da), call.out(db)});
  });
}

template <class Machine>
void GpuKernels<Machine>::sigmoid(const Tensor& x, const Tensor& y) const {
  run([&](auto& call) { call.elements(x.numel(), gpu::Sigmoid{call.in(x), call.out(y)}); });
}

template <class Machine>
void GpuKernels<Machine>::sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const {
  run([&](auto& call) { call.elements(y.numel(), gpu::SigmoidGrad{call.in(y), call.in(dy), call.out(dx)}); });
}

template <class Machine>
void GpuKernels<Machine>::clip(double limit, const Tensor& x, const Tensor& y) const {
  run([&](auto& call) { call.elements(x.numel(), gpu::Clip{static_cast<float>(limit), call.in(x), call.out(y)}); });
}

template <class Machine>
void GpuKernels<Machine>::clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const {
  run([&](auto& call) {
    call.elements(x.numel(), gpu::ClipGrad{static_cast<float>(limit), call.in(x), call.in(dy), call.out(dx)});
  });
}

template <class Machine>
double GpuKernels<Machine>::sum_squares(const Tensor& x) const {
  const int64_t num_blocks = gpu::tiles_of(x.numel(), gpu::kSquaresPiece);
  double total = 0.0;
  run([&](auto& call) {
    double* sums = call.template scratch<double>(num_blocks);
    call.blocks(num_blocks, gpu::SumSquares{call.in(x), sums, x.numel()});
    for (const double sum : call.read(sums, num_blocks)) total += sum;
  });
  return total;
}

template <class Machine>
void GpuKernels<Machine>::adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
                                const Tensor& v) const {
  const auto power = static_cast<double>(step.step);
  const auto update = [&]<class Moment>(auto& call, Moment* first, Moment* second) {
    call.elements(value.numel(),
                  gpu::AdamW<Moment>{.learning_rate = static_cast<float>(step.learning_rate),
                                     .beta1 = static_cast<float>(step.beta1),
                                     .beta2 = static_cast<float>(step.beta2),
                                     .rest1 = static_cast<float>(1.0 - step.beta1),
                                     .rest2 = static_cast<float>(1.0 - step.beta2),
                                     .over_first = static_cast<float>(1.0 / (1.0 - std::pow(step.beta1, power))),
                                     .over_second = static_cast<float>(1.0 / (1.0 - std::pow(step.beta2, power))),
                                     .epsilon = static_cast<float>(step.epsilon),
                                     .weight_decay = static_cast<float>(step.weight_decay),
                                     .grad_scale = static_cast<float>(step.grad_scale),
                                     .value = call.both(value),
                                     .grad = call.in(grad),
                                     .m = first,
                                     .v = second});
  };
  run([&](auto& call) {
    if (m.dtype() == DType::bf16) {
      update(call, call.template both<bf16>(m), call.template both<bf16>(v));
    } else {
      update(call, call.both(m), call.both(v));
    }
  });
}

// GpuKernels: positions, attention, and the parts of rows that latent attention takes.

namespace gpu {

template <class T>
ColumnsOf<T> columns_of(T* rows, const Columns& columns) {
  return {rows + columns.first, width_of(columns.rows)};
}

// Of all heads at once, each with its rows of the weight: y[t,h,:] from x[t,h,:].
inline ProductShape head_product(const Tensor& x, const HeadRows& weight, const Tensor& y, bool transposed) {
  const int64_t in = width_of(weight.weight);
  const int64_t heads = weight.num_heads;
  return {.rows = num_rows_of(x) / heads,
          .columns = transposed ? in : weight.count,
          .inner = transposed ? weight.count : in,
          .b_transposed = !transposed,
          .count = heads,
          .a = {heads * width_of(x), width_of(x)},
          .b = {in, weight.weight.dim(0) / heads * in},
          .d = {heads * width_of(y), width_of(y)}};
}

template <class Call>
void multiply_heads(Call& call, const Tensor& x, const HeadRows& weight, const Tensor& y, bool transposed) {
  if (num_rows_of(x) == 0) return;
  call.multiply(head_product(x, weight, y, transposed), call.in(x),
                call.in(weight.weight) + weight.first * width_of(weight.weight), call.both(y));
}

}  // namespace gpu

template <class Machine>
void GpuKernels<Machine>::rope(const Tensor& x, const Tensor& positions, const Rope& rope,
                               RopeDirection direction) const {
  const auto pairs = static_cast<int64_t>(rope.frequencies.size());
  CADRE_CHECK(
      pairs <= gpu::kMaxRopePairs,
      fmt::format("a head turns {} pairs of columns; the GPU back end has room for {}", pairs, gpu::kMaxRopePairs));
  const bool interleaved = rope.layout == RopeLayout::interleaved;
  run([&](auto& call) {
    gpu::Turn turn = {.x = call.both(x),
                      .positions = call.template in<int32_t>(positions),
                      .heads = x.dim(1),
                      .head_dim = x.dim(2),
                      .first = rope.first,
                      .pairs = pairs,
                      .step = interleaved ? 2 : 1,
                      .apart = interleaved ? 1 : pairs,
                      .sign = direction == RopeDirection::forward ? 1.0 : -1.0,
                      .factor = rope.factor,
                      .frequencies = {}};
    std::copy(rope.frequencies.begin(), rope.frequencies.end(), turn.frequencies);
    call.blocks(x.dim(0), turn, 2 * pairs);
  });
}

template <class Machine>
void GpuKernels<Machine>::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& out, const Tensor& lse) const {
  run([&](auto& call) {
    attends_in_bf16(shape) ? gpu::attend<bf16>(call, shape, q, k, v, out, lse)
                           : gpu::attend<float>(call, shape, q, k, v, out, lse);
  });
}

template <class Machine>
void GpuKernels<Machine>::attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq,
                                         const Tensor& dk, const Tensor& dv) const {
  run([&](auto& call) {
    attends_in_bf16(shape) ? gpu::attend_grad<bf16>(call, shape, q, k, v, out, lse, dout, dq, dk, dv)
                           : gpu::attend_grad<float>(call, shape, q, k, v, out, lse, dout, dq, dk, dv);
  });
}

template <class Machine>
void GpuKernels<Machine>::copy_columns(const Columns& src, const Columns& dst) const {
  const int64_t num_rows = gpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  run([&](auto& call) {
    call.blocks(num_rows,
                gpu::CopyColumns{gpu::columns_of(call.in(src.rows), src), gpu::columns_of(call.both(dst.rows), dst),
                                 dst.count, num_rows / gpu::num_rows_of(src.rows)});
  });
}

template <class Machine>
void GpuKernels<Machine>::sum_columns(const Columns& src, const Columns& dst) const {
  const int64_t num_rows = gpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  run([&](auto& call) {
    call.blocks(num_rows,
                gpu::SumColumns{gpu::columns_of(call.in(src.rows), src), gpu::columns_of(call.both(dst.rows), dst),
                                dst.count, gpu::num_rows_of(src.rows) / num_rows});
  });
}

template <class Machine>
void GpuKernels<Machine>::head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  run([&](auto& call) { gpu::multiply_heads(call, x, weight, y, /*transposed=*/false); });
}

template <class Machine>
void GpuKernels<Machine>::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  run([&](auto& call) { gpu::multiply_heads(call, x, weight, y, /*transposed=*/true); });
}

}  // namespace cadre
