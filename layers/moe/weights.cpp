// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/weights.hpp"

#include <algorithm>

namespace cadre {
namespace {

constexpr double kEpsilon = 1e-20;

// What the sum of the chosen scores is divided by.
template <class T>
double divisor(const WeightOptions& options, const T* scores, const int32_t* ids, int64_t top_k) {
  if (!options.renormalise) return 1.0;
  double sum = kEpsilon;
  for (int64_t k = 0; k < top_k; ++k) {
    if (ids[k] >= 0) sum += scores[ids[k]];
  }
  return sum;
}

template <class T>
void forward(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& weights) {
  const int64_t num_experts = scores.dim(1);
  const int64_t top_k = ids.dim(1);
  for (int64_t t = 0; t < ids.dim(0); ++t) {
    const T* score = scores.data<T>() + t * num_experts;
    const int32_t* id = ids.data<int32_t>() + t * top_k;
    T* weight = weights.data<T>() + t * top_k;
    const double factor = options.scale / divisor(options, score, id, top_k);
    for (int64_t k = 0; k < top_k; ++k) weight[k] = id[k] < 0 ? T{0} : static_cast<T>(score[id[k]] * factor);
  }
}

// With S the divisor: d score_j = scale (dw_j / S - sum_k dw_k score_k / S^2).
template <class T>
void backward(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
              const Tensor& dscores) {
  const int64_t num_experts = scores.dim(1);
  const int64_t top_k = ids.dim(1);
  for (int64_t t = 0; t < ids.dim(0); ++t) {
    const T* score = scores.data<T>() + t * num_experts;
    const int32_t* id = ids.data<int32_t>() + t * top_k;
    const T* dweight = dweights.data<T>() + t * top_k;
    T* dscore = dscores.data<T>() + t * num_experts;
    std::fill_n(dscore, num_experts, T{0});
    const double sum = divisor(options, score, id, top_k);
    double shared = 0.0;
    for (int64_t k = 0; options.renormalise && k < top_k; ++k) {
      if (id[k] >= 0) shared += static_cast<double>(dweight[k]) * score[id[k]] / (sum * sum);
    }
    for (int64_t k = 0; k < top_k; ++k) {
      if (id[k] >= 0) dscore[id[k]] += static_cast<T>(options.scale * (dweight[k] / sum - shared));
    }
  }
}

}  // namespace

void routing_weights(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& weights) {
  if (scores.dtype() == DType::f64) return forward<double>(options, scores, ids, weights);
  forward<float>(options, scores, ids, weights);
}

void routing_weights_grad(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                          const Tensor& dscores) {
  if (scores.dtype() == DType::f64) return backward<double>(options, scores, ids, dweights, dscores);
  backward<float>(options, scores, ids, dweights, dscores);
}

}  // namespace cadre
