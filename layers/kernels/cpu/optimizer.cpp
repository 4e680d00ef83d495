// SPDX-License-Identifier: Apache-2.0
// The optimiser's two functions, one pass over memory each.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/optimizer.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// In fp64 lanes: the square of a large gradient must not overflow before clipping has seen it.
double sum_of_squares(const float* x, size_t count) {
  const hn::ScalableTag<double> wide;
  const hn::Rebind<float, decltype(wide)> narrow;
  const size_t lanes = hn::Lanes(wide);
  auto sum0 = hn::Zero(wide);
  auto sum1 = hn::Zero(wide);
  size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const auto v0 = hn::PromoteTo(wide, hn::LoadU(narrow, x + i));
    const auto v1 = hn::PromoteTo(wide, hn::LoadU(narrow, x + i + lanes));
    sum0 = hn::MulAdd(v0, v0, sum0);
    sum1 = hn::MulAdd(v1, v1, sum1);
  }
  double total = hn::GetLane(hn::SumOfLanes(wide, hn::Add(sum0, sum1)));
  for (; i < count; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

// The constants are folded so that an element needs one square root and one division. Decay and move are added up
// before they meet the value: 1 - learning_rate weight_decay would lose most of its digits.
void adamw_elements(const AdamWStep& step, float* value, const float* grad, float* m, float* v, size_t count) {
  const auto steps = static_cast<double>(step.step);
  const double correction1 = 1.0 - std::pow(step.beta1, steps);
  const double correction2 = 1.0 - std::pow(step.beta2, steps);
  const auto constant = [](double number) HWY_ATTR { return splat(static_cast<float>(number)); };
  const Float grad_scale = constant(step.grad_scale);
  const Float beta1 = constant(step.beta1);
  const Float beta2 = constant(step.beta2);
  const Float share1 = constant(1.0 - step.beta1);
  const Float share2 = constant(1.0 - step.beta2);
  const Float root_scale = constant(1.0 / std::sqrt(correction2));
  const Float epsilon = constant(step.epsilon);
  const Float rate = constant(step.learning_rate / correction1);
  const Float decay = constant(step.learning_rate * step.weight_decay);
  for_each_vector(count, [=](size_t i, auto lanes) HWY_ATTR {
    const Float g = hn::Mul(grad_scale, lanes.load(grad + i));
    const Float first = hn::MulAdd(beta1, lanes.load(m + i), hn::Mul(share1, g));
    const Float second = hn::MulAdd(beta2, lanes.load(v + i), hn::Mul(hn::Mul(share2, g), g));
    const Float root = hn::MulAdd(hn::Sqrt(second), root_scale, epsilon);
    const Float old_value = lanes.load(value + i);
    const Float move = hn::MulAdd(decay, old_value, hn::Div(hn::Mul(rate, first), root));
    lanes.store(first, m + i);
    lanes.store(second, v + i);
    lanes.store(hn::Sub(old_value, move), value + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(sum_of_squares);
HWY_EXPORT(adamw_elements);

// Pieces of one size are added up in their order.
double CpuKernels::sum_squares(const Tensor& x) const {
  constexpr size_t kPiece = 1 << 16;
  const size_t count = cpu::count_of(x);
  std::vector<double> sums((count + kPiece - 1) / kPiece);
  threads_.run(std::ssize(sums), [&](int64_t i) {
    const size_t first = static_cast<size_t>(i) * kPiece;
    sums[static_cast<size_t>(i)] =
        HWY_DYNAMIC_DISPATCH(sum_of_squares)(x.data<float>() + first, std::min(kPiece, count - first));
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

namespace {

// A piece of bf16 moments at a time, as floats that stay in the cache.
void adamw_in_pieces(const AdamWStep& step, float* value, const float* grad, bf16* m, bf16* v, size_t count) {
  constexpr size_t kPiece = 1024;
  float means[kPiece];
  float variances[kPiece];
  for (size_t first = 0; first < count; first += kPiece) {
    const size_t piece = std::min(kPiece, count - first);
    std::transform(m + first, m + first + piece, means, [](bf16 x) { return to_float(x); });
    std::transform(v + first, v + first + piece, variances, [](bf16 x) { return to_float(x); });
    HWY_DYNAMIC_DISPATCH(adamw_elements)(step, value + first, grad + first, means, variances, piece);
    round_to_bf16(means, m + first, piece);
    round_to_bf16(variances, v + first, piece);
  }
}

}  // namespace

void CpuKernels::adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
                       const Tensor& v) const {
  cpu::for_pieces(threads_, cpu::count_of(value), 1, [&](size_t first, size_t count) {
    float* values = value.data<float>() + first;
    const float* grads = grad.data<float>() + first;
    if (m.dtype() == DType::bf16) {
      return adamw_in_pieces(step, values, grads, m.data<bf16>() + first, v.data<bf16>() + first, count);
    }
    HWY_DYNAMIC_DISPATCH(adamw_elements)
    (step, values, grads, m.data<float>() + first, v.data<float>() + first, count);
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
