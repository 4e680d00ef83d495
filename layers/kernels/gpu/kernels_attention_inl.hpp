// SPDX-License-Identifier: Apache-2.0
// GpuKernels: positions, attention, and the parts of rows that latent attention takes.
#pragma once

#include <algorithm>

#include "layers/kernels/gpu/attention.hpp"
#include "layers/kernels/gpu/kernels.hpp"
#include "layers/kernels/gpu/rope.hpp"

namespace cadre {
namespace gpu {

// `plan` with the tile that the kernel's shared memory has room for.
template <class Kernel>
AttentionPlan with_tile(AttentionPlan plan) {
  plan.tile = attention_tile([&](int64_t tile) { return Kernel::floats_of(plan, tile); });
  CADRE_CHECK(plan.tile > 0,
              fmt::format("heads of {} and values of {} elements do not fit in the shared memory of a GPU block",
                          plan.head_dim, plan.value_dim),
              "use smaller heads, or device = cpu");
  return plan;
}

template <class Kernel>
int64_t query_blocks(const AttentionShape& shape, const AttentionPlan& plan) {
  return shape.batch * shape.num_heads * tiles_of(shape.q_len, plan.tile);
}

template <class T>
ColumnsOf<T> columns_of(T* rows, const Columns& columns) {
  return {rows + columns.first, width_of(columns.rows)};
}

template <class Call>
HeadRowsOf head_rows_of(Call& call, const HeadRows& rows) {
  return {call.in(rows.weight), rows.num_heads, rows.weight.dim(0) / rows.num_heads,
          rows.first,           rows.count,     width_of(rows.weight)};
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
  using Kernel = gpu::AttentionForward;
  run([&](auto& call) {
    const auto plan = gpu::with_tile<Kernel>(gpu::AttentionPlan::of(shape, v.dim(2)));
    call.blocks(gpu::query_blocks<Kernel>(shape, plan),
                Kernel{plan, call.in(q), call.in(k), call.in(v), call.out(out), call.out(lse)},
                Kernel::floats_of(plan, plan.tile));
  });
}

template <class Machine>
void GpuKernels<Machine>::attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq,
                                         const Tensor& dk, const Tensor& dv) const {
  using QueryGrad = gpu::AttentionQueryGrad;
  using KeyGrad = gpu::AttentionKeyGrad;
  run([&](auto& call) {
    const auto plan = gpu::AttentionPlan::of(shape, shape.value_dim);
    const gpu::AttentionGradInputs in = {call.in(q), call.in(k), call.in(v), call.in(out), call.in(lse), call.in(dout)};
    const auto query_plan = gpu::with_tile<QueryGrad>(plan);
    call.blocks(gpu::query_blocks<QueryGrad>(shape, query_plan), QueryGrad{query_plan, in, call.out(dq)},
                QueryGrad::floats_of(query_plan, query_plan.tile));
    const auto key_plan = gpu::with_tile<KeyGrad>(plan);
    call.blocks(shape.batch * shape.num_kv_heads * gpu::tiles_of(shape.kv_len, key_plan.tile),
                KeyGrad{key_plan, in, call.both(dk), call.both(dv)}, KeyGrad::floats_of(key_plan, key_plan.tile));
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
  run([&](auto& call) {
    call.elements(
        gpu::num_rows_of(x) * weight.count,
        gpu::HeadLinear{call.in(x), gpu::width_of(x), gpu::head_rows_of(call, weight), call.both(y), gpu::width_of(y)});
  });
}

template <class Machine>
void GpuKernels<Machine>::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  run([&](auto& call) {
    call.elements(gpu::num_rows_of(x) * gpu::width_of(weight.weight),
                  gpu::HeadLinearTransposed{call.in(x), gpu::width_of(x), gpu::head_rows_of(call, weight), call.both(y),
                                            gpu::width_of(y)});
  });
}

}  // namespace cadre
