// SPDX-License-Identifier: Apache-2.0
#include "runtime/optim/muon.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace cadre {
namespace {

constexpr double kUpdateScale = 0.2;  // the root mean square of AdamW's updates
constexpr double kSmallestNorm = 1e-7;
constexpr int kIterations = 5;
// X <- a X + b (X X^T) X + c (X X^T)^2 X
constexpr double kA = 3.4445;
constexpr double kB = -4.7750;
constexpr double kC = 2.0315;

// Matrices of one part: two of its shape [R,C], two of its smaller extent [K,K].
struct MuonScratch {
  MuonScratch(const Tensor& part, std::byte* memory) {
    const int64_t smaller = std::min(part.dim(0), part.dim(1));
    const auto take = [&](int64_t rows, int64_t width) {
      const Tensor taken(memory, part.dtype(), {rows, width});
      memory += whole_cache_lines(taken.bytes());
      return taken;
    };
    x = operand(take(part.dim(0), part.dim(1)));
    product = take(part.dim(0), part.dim(1));
    gram = take(smaller, smaller);
    polynomial = operand(take(smaller, smaller));
  }

  Parameter x;
  Tensor product;
  Tensor gram;
  Parameter polynomial;

 private:
  // Its products are those of a weight that trains.
  static Parameter operand(const Tensor& values) {
    Parameter matrix;
    matrix.value = values;
    matrix.grad = values;
    return matrix;
  }
};

void newton_schulz(const Kernels& kernels, MuonScratch& s) {
  const Tensor& x = s.x.value;
  const Tensor& polynomial = s.polynomial.value;
  const bool is_tall = x.dim(0) > x.dim(1);
  const double norm = std::sqrt(kernels.sum_squares(x));
  kernels.scaled_sum(1.0 / (norm + kSmallestNorm), x, 0.0, x, x);
  for (int i = 0; i < kIterations; ++i) {
    ++s.x.version;
    is_tall ? kernels.linear_weight_grad(x, x, s.gram, Accumulate::no) : kernels.linear(x, s.x, s.gram);
    kernels.linear_weight_grad(s.gram, s.gram, polynomial, Accumulate::no);  // the Gram matrix is symmetric
    kernels.scaled_sum(kB, s.gram, kC, polynomial, polynomial);
    ++s.polynomial.version;
    is_tall ? kernels.linear_input_grad(x, s.polynomial, s.product, Accumulate::no)
            : kernels.linear_input_grad(polynomial, s.x, s.product, Accumulate::no);
    kernels.scaled_sum(kA, x, 1.0, s.product, x);
  }
}

void update_part(const Kernels& kernels, const MuonStep& step, const Tensor& value, const Tensor& grad,
                 const Tensor& momentum, std::byte* scratch) {
  MuonScratch s(value, scratch);
  const Tensor& x = s.x.value;
  kernels.scaled_sum(step.momentum, momentum, step.grad_scale, grad, momentum);
  kernels.scaled_sum(step.momentum, momentum, step.grad_scale, grad, x);  // Nesterov's
  newton_schulz(kernels, s);
  const double scale = kUpdateScale * std::sqrt(static_cast<double>(std::max(value.dim(0), value.dim(1))));
  // Decay and move are added up first: 1 - learning_rate weight_decay would lose most of its digits.
  kernels.scaled_sum(step.learning_rate * scale, x, step.learning_rate * step.weight_decay, value, s.product);
  kernels.scaled_sum(1.0, value, -1.0, s.product, value);
}

}  // namespace

bool is_muon_matrix(const Parameter& parameter) {
  if (parameter.placement == Placement::buffer || parameter.is_table || parameter.value.num_dims() != 2) return false;
  return parameter.value.dim(1) > 1 &&
         std::ranges::all_of(parameter.parts, [](const ParameterPart& part) { return part.num_rows > 1; });
}

size_t muon_scratch_bytes(const Parameter& parameter) {
  const int64_t width = parameter.value.dim(1);
  const auto lines_of = [&](int64_t elements) {
    return whole_cache_lines(static_cast<size_t>(elements) * size_of(parameter.value.dtype()));
  };
  size_t most = 0;
  for (const ParameterPart& part : parameter.parts) {
    const int64_t smaller = std::min(part.num_rows, width);
    most = std::max(most, 2 * lines_of(part.num_rows * width) + 2 * lines_of(smaller * smaller));
  }
  return most;
}

void muon_update(const Kernels& kernels, const MuonStep& step, Parameter& parameter, const Tensor& momentum,
                 std::byte* scratch) {
  for (const ParameterPart& part : parameter.parts) {
    const auto rows = [&part](const Tensor& whole) { return whole.rows(part.first_row, part.num_rows); };
    update_part(kernels, step, rows(parameter.value), rows(parameter.grad), rows(momentum), scratch);
  }
}

}  // namespace cadre
