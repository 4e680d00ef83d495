// SPDX-License-Identifier: Apache-2.0
// All of GpuKernels, for the one file that instantiates it for a machine.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/kernels/gpu/fp8_products.hpp"
#include "layers/kernels/gpu/kernels.hpp"
#include "layers/kernels/gpu/kernels_elements_inl.hpp"
#include "layers/kernels/gpu/norm.hpp"
#include "layers/kernels/gpu/products.hpp"
#include "layers/kernels/gpu/router.hpp"

namespace cadre {

// GpuKernels: norms, softmax and losses, the router, rows of tables and of experts.
template <class Machine>
void GpuKernels<Machine>::rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& y,
                                   const Tensor& rstd) const {
  run([&](auto& call) {
    call.blocks(gpu::num_rows_of(x), gpu::RmsNorm{call.in(x), call.in(weight), call.out(y), call.out(rstd),
                                                  gpu::width_of(x), static_cast<float>(epsilon)});
  });
}

template <class Machine>
void GpuKernels<Machine>::rms_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                              const Tensor& rstd, const Tensor& dx) const {
  run([&](auto& call) {
    call.blocks(gpu::num_rows_of(x), gpu::RmsNormGrad{call.in(dy), call.in(x), call.in(weight), call.in(rstd),
                                                      call.out(dx), gpu::width_of(x)});
  });
}

template <class Machine>
void GpuKernels<Machine>::rms_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& rstd,
                                               const Tensor& dweight) const {
  run([&](auto& call) {
    const int64_t width = gpu::width_of(x);
    call.blocks(
        gpu::tiles_of(width, gpu::kColumns),
        gpu::RmsNormWeightGrad{call.in(dy), call.in(x), call.in(rstd), call.both(dweight), gpu::num_rows_of(x), width},
        gpu::kStrips * gpu::kColumns);
  });
}

template <class Machine>
void GpuKernels<Machine>::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon,
                                     const Tensor& y, const Tensor& mean, const Tensor& rstd) const {
  run([&](auto& call) {
    call.blocks(gpu::num_rows_of(x),
                gpu::LayerNorm{call.in(x), call.in(weight), call.in(bias), call.out(y), call.out(mean), call.out(rstd),
                               gpu::width_of(x), static_cast<float>(epsilon)});
  });
}

template <class Machine>
void GpuKernels<Machine>::layer_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                const Tensor& mean, const Tensor& rstd, const Tensor& dx) const {
  run([&](auto& call) {
    call.blocks(gpu::num_rows_of(x), gpu::LayerNormGrad{call.in(dy), call.in(x), call.in(weight), call.in(mean),
                                                        call.in(rstd), call.out(dx), gpu::width_of(x)});
  });
}

template <class Machine>
void GpuKernels<Machine>::layer_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                 const Tensor& rstd, const Tensor& dweight, const Tensor& dbias) const {
  run([&](auto& call) {
    const int64_t width = gpu::width_of(x);
    call.blocks(gpu::tiles_of(width, gpu::kColumns),
                gpu::LayerNormWeightGrad{call.in(dy), call.in(x), call.in(mean), call.in(rstd), call.both(dweight),
                                         call.both(dbias), gpu::num_rows_of(x), width},
                gpu::kStrips * gpu::kColumns);
  });
}

template <class Machine>
void GpuKernels<Machine>::softmax(const Tensor& x, const Tensor& y) const {
  run([&](auto& call) { call.blocks(gpu::num_rows_of(x), gpu::Softmax{call.in(x), call.out(y), gpu::width_of(x)}); });
}

template <class Machine>
void GpuKernels<Machine>::softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const {
  run([&](auto& call) {
    call.blocks(gpu::num_rows_of(y), gpu::SoftmaxGrad{call.in(y), call.in(dy), call.out(dx), gpu::width_of(y)});
  });
}

template <class Machine>
void GpuKernels<Machine>::cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const {
  run([&](auto& call) {
    call.blocks(logits.dim(0), gpu::CrossEntropy{call.in(logits), call.template in<int32_t>(targets), call.out(losses),
                                                 logits.dim(1)});
  });
}

template <class Machine>
void GpuKernels<Machine>::cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                                             const Tensor& dlogits) const {
  run([&](auto& call) {
    call.blocks(logits.dim(0), gpu::CrossEntropyGrad{call.in(logits), call.template in<int32_t>(targets),
                                                     call.out(dlogits), logits.dim(1), static_cast<float>(scale)});
  });
}

template <class Machine>
void GpuKernels<Machine>::top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const {
  const int64_t num_tokens = scores.dim(0);
  run([&](auto& call) {
    int32_t* nans = call.template scratch<int32_t>(num_tokens);
    call.blocks(num_tokens, gpu::TopK{call.in(scores), call.in(bias), call.template out<int32_t>(ids), nans,
                                      scores.dim(1), ids.dim(1)});
    const std::vector<int32_t> bad = call.read(nans, num_tokens);
    const auto first = std::ranges::find_if(bad, [](int32_t expert) { return expert >= 0; });
    if (first == bad.end()) return;
    throw Error(ErrorKind::numerics,
                fmt::format("router score of token row {}, expert {} is NaN", first - bad.begin(), *first),
                "the activations or the router weights are no longer finite; lower the learning rate");
  });
}

template <class Machine>
bool GpuKernels<Machine>::can_route(const RouteRule& rule, int64_t num_experts) const {
  return gpu::Route::fits(rule, num_experts);
}

template <class Machine>
void GpuKernels<Machine>::route(const RouteRule& rule, const Tensor& logits, const Tensor& bias,
                                const RouteResult& result) const {
  run([&](auto& call) {
    const int64_t num_tokens = logits.dim(0);
    const int64_t num_experts = logits.dim(1);
    gpu::Route route = gpu::Route::of(rule, num_experts, result.ids.dim(1));
    route.logits = call.in(logits);
    route.bias = call.in(bias);
    route.scores = call.out(result.scores);
    route.ids = call.template out<int32_t>(result.ids);
    route.weights = call.out(result.weights);
    call.blocks(num_tokens, route, route.shared_floats());
    float* inverse = result.inverse.defined() ? call.out(result.inverse) : nullptr;
    call.blocks(num_tokens, gpu::RouteFacts{route.logits, route.scores, call.template out<int32_t>(result.not_finite),
                                            inverse, num_experts});
    if (!result.best.defined()) return;
    int32_t* nans = call.template scratch<int32_t>(num_tokens);  // told by not_finite
    call.blocks(num_tokens, gpu::TopK{route.scores, nullptr, call.template out<int32_t>(result.best), nans, num_experts,
                                      result.best.dim(1)});
  });
}

template <class Machine>
void GpuKernels<Machine>::route_grad(const RouteRule& rule, const Tensor& scores, const Tensor& ids,
                                     const Tensor& dweights, const RouteSlopes& slopes, const Tensor& dlogits) const {
  run([&](auto& call) {
    const int64_t num_tokens = scores.dim(0);
    if (num_tokens == 0) return;
    const int64_t num_rows = slopes.by_share.defined() ? slopes.by_share.dim(0) : 1;
    call.blocks(num_tokens, gpu::RouteGrad{.rule = rule,
                                           .scores = call.in(scores),
                                           .ids = call.template in<int32_t>(ids),
                                           .dweights = call.in(dweights),
                                           .by_share = call.in(slopes.by_share),
                                           .tokens_a_row = num_tokens / num_rows,
                                           .by_score = call.in(slopes.by_score),
                                           .dlogits = call.out(dlogits),
                                           .num_experts = scores.dim(1),
                                           .top_k = ids.dim(1)});
  });
}

template <class Machine>
void GpuKernels<Machine>::embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const {
  run([&](auto& call) {
    const int64_t width = table.dim(1);
    const gpu::PickedRows rows = {call.template in<std::byte>(table), width * static_cast<int64_t>(sizeof(float)),
                                  call.template in<int32_t>(ids)};
    call.blocks(ids.numel(), gpu::GatherRows{rows, nullptr, call.out(y), width});
  });
}

template <class Machine>
void GpuKernels<Machine>::embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const {
  const gpu::TokensByRow by_row({ids.data<int32_t>(), static_cast<size_t>(ids.numel())});
  run([&](auto& call) {
    call.blocks(by_row.num_rows(), gpu::EmbeddingGrad{.ids = call.template in<int32_t>(ids),
                                                      .tokens = call.copied(std::span(by_row.tokens)),
                                                      .starts = call.copied(std::span(by_row.starts)),
                                                      .dy = call.in(dy),
                                                      .dtable = call.both(dtable),
                                                      .width = dtable.dim(1)});
  });
}

template <class Machine>
void GpuKernels<Machine>::gather_rows(const Rows& src, const Tensor& index, const Tensor& scale,
                                      const Tensor& dst) const {
  run([&](auto& call) {
    call.blocks(dst.dim(0), gpu::GatherRows{call.rows(src, index), call.in(scale), call.out(dst), dst.row_numel()});
  });
}

template <class Machine>
void GpuKernels<Machine>::sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                                   const Tensor& dst) const {
  run([&](auto& call) {
    call.blocks(dst.dim(0), gpu::SumRows{call.rows(src, index), call.template in<int32_t>(offsets), call.in(weight),
                                         call.out(dst), dst.row_numel()});
  });
}

template <class Machine>
void GpuKernels<Machine>::dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                                   const Tensor& out) const {
  run([&](auto& call) {
    call.blocks(out.numel(), gpu::DotRows{call.rows(a, a_index), call.rows(b, b_index), call.out(out), a.width});
  });
}

template <class Machine>
std::unique_ptr<Kernels> make_gpu_kernels(std::string_view name, std::shared_ptr<Machine> machine,
                                          Precision precision) {
  using OnMachine = GpuKernels<Machine>;
  const auto products = [&](Precision of) -> std::unique_ptr<GroupedWeightProducts> {
    const bool in_fp8 = of == Precision::fp8 || of == Precision::fp8_ue8m0;
    if (!in_fp8 || !machine->multiplies_fp8()) return std::make_unique<GpuProducts<Machine>>(machine, of);
    return std::make_unique<GpuFp8Products<Machine>>(machine, of == Precision::fp8 ? Fp8Scale::fp32 : Fp8Scale::ue8m0);
  };
  auto fp32 = std::make_unique<OnMachine>(name, machine, products(Precision::fp32));
  if (precision == Precision::fp32) return fp32;
  const bool in_fp8 = precision != Precision::bf16;
  return std::make_unique<OnMachine>(name, machine, products(precision), std::move(fp32), in_fp8);
}

}  // namespace cadre
