// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/groups.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace cadre {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double group_score(GroupScore kind, const double* first, int64_t size) {
  double best = kNever;
  double second = kNever;
  for (int64_t i = 0; i < size; ++i) {
    if (first[i] > best) {
      second = best;
      best = first[i];
    } else {
      second = std::max(second, first[i]);
    }
  }
  return kind == GroupScore::best || size == 1 ? best : best + second;
}

template <class T>
void limit(const GroupLimit& limit, const Tensor& scores, const Tensor& bias, const Tensor& eligible) {
  const int64_t num_experts = scores.dim(1);
  const int64_t size = num_experts / limit.groups;
  std::vector<double> choice(static_cast<size_t>(num_experts));
  std::vector<double> of_group(static_cast<size_t>(limit.groups));
  std::vector<int> order(of_group.size());
  for (int64_t token = 0; token < scores.dim(0); ++token) {
    const T* score = scores.data<T>() + token * num_experts;
    T* out = eligible.data<T>() + token * num_experts;
    for (int64_t e = 0; e < num_experts; ++e) {
      out[e] = bias.defined() ? score[e] + bias.data<T>()[e] : score[e];
      choice[e] = static_cast<double>(out[e]);
    }
    for (int g = 0; g < limit.groups; ++g) of_group[g] = group_score(limit.score, choice.data() + g * size, size);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return of_group[a] > of_group[b]; });
    for (int place = limit.kept; place < limit.groups; ++place) {
      T* const first = out + order[place] * size;
      std::replace_if(
          first, first + size, [](T value) { return value == value; }, static_cast<T>(kNever));
    }
  }
}

}  // namespace

void limit_to_groups(const GroupLimit& group_limit, const Tensor& scores, const Tensor& bias, const Tensor& eligible) {
  if (scores.dtype() == DType::f64) {
    limit<double>(group_limit, scores, bias, eligible);
  } else {
    limit<float>(group_limit, scores, bias, eligible);
  }
}

}  // namespace cadre
