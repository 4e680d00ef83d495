// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/diversity.hpp"

#include <cmath>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

// The outputs of one token, n of width H: their directions, norms and the sum of the directions.
struct Directions {
  template <class T>
  Directions(const T* first, int64_t count, int64_t width)
      : unit(static_cast<size_t>(count * width)),
        inverse_norm(static_cast<size_t>(count), 0.0),
        sum(static_cast<size_t>(width), 0.0) {
    for (int64_t i = 0; i < count; ++i) {
      double squares = 0.0;
      for (int64_t h = 0; h < width; ++h) squares += double{first[i * width + h]} * double{first[i * width + h]};
      if (squares == 0.0) continue;
      inverse_norm[static_cast<size_t>(i)] = 1.0 / std::sqrt(squares);
      own += 1.0;
      for (int64_t h = 0; h < width; ++h) {
        const double u = double{first[i * width + h]} * inverse_norm[static_cast<size_t>(i)];
        unit[static_cast<size_t>(i * width + h)] = u;
        sum[static_cast<size_t>(h)] += u;
      }
    }
    factor = 2.0 / static_cast<double>(count * (count - 1));
  }

  // sum_{i<j} u_i . u_j = (|sum u|^2 - sum |u|^2) / 2
  double loss() const {
    double squares = 0.0;
    for (const double s : sum) squares += s * s;
    return factor * (squares - own) / 2.0;
  }

  std::vector<double> unit;          // [n,H]
  std::vector<double> inverse_norm;  // [n], 0 where the norm is
  std::vector<double> sum;           // [H]
  double own = 0.0;                  // outputs that have a direction
  double factor = 0.0;
};

}  // namespace

double diversity_loss(const Tensor& outputs, std::span<const int32_t> offsets) {
  double loss = 0.0;
  const int64_t width = outputs.dim(1);
  with_element_type(outputs, [&]<class T>(std::type_identity<T>) {
    for (size_t t = 0; t + 1 < offsets.size(); ++t) {
      const int64_t count = offsets[t + 1] - offsets[t];
      if (count > 1) loss += Directions(outputs.data<T>() + offsets[t] * width, count, width).loss();
    }
  });
  return loss;
}

void diversity_grad(double scale, const Tensor& outputs, std::span<const int32_t> offsets, const Tensor& grads) {
  const auto width = static_cast<size_t>(outputs.dim(1));
  with_element_type(outputs, [&]<class T>(std::type_identity<T>) {
    for (size_t t = 0; t + 1 < offsets.size(); ++t) {
      const auto first = static_cast<size_t>(offsets[t]);
      const auto count = static_cast<size_t>(offsets[t + 1]) - first;
      if (count == 1) std::fill_n(grads.data<T>() + first * width, width, T{0});
      if (count < 2) continue;
      const Directions of(outputs.data<T>() + first * width, static_cast<int64_t>(count), outputs.dim(1));
      for (size_t i = 0; i < count; ++i) {
        const double* u = of.unit.data() + i * width;
        double along = 0.0;
        for (size_t h = 0; h < width; ++h) along += (of.sum[h] - u[h]) * u[h];
        T* grad = grads.data<T>() + (first + i) * width;
        const double outer = scale * of.factor * of.inverse_norm[i];
        for (size_t h = 0; h < width; ++h) grad[h] = static_cast<T>(outer * (of.sum[h] - u[h] - along * u[h]));
      }
    }
  });
}

}  // namespace cadre
