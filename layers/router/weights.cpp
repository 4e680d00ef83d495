// SPDX-License-Identifier: Apache-2.0
#include "layers/router/weights.hpp"

#include <algorithm>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr double kWeightEpsilon = 1e-20;

// One token: E scores, K ids and weights, or their gradients.
template <class T>
struct Row {
  const T* scores;
  int64_t num_experts;
  const int32_t* ids;
  int64_t top_k;
};

// --- one level ------------------------------------------------------------------------------------------------------

// What the chosen scores (1 each with a binary gate) are divided by.
template <class T>
double divisor(const WeightOptions& options, const Row<T>& row) {
  if (!options.renormalise) return 1.0;
  double sum = kWeightEpsilon;
  for (int64_t k = 0; k < row.top_k; ++k) {
    if (row.ids[k] >= 0) sum += options.gate == GateKind::binary ? 1.0 : row.scores[row.ids[k]];
  }
  return sum;
}

template <class T>
void one_level(const WeightOptions& options, const Row<T>& row, T* weights) {
  const double factor = options.scale / divisor(options, row);
  const bool binary = options.gate == GateKind::binary;
  for (int64_t k = 0; k < row.top_k; ++k) {
    weights[k] = row.ids[k] < 0 ? T{0} : static_cast<T>((binary ? 1.0 : row.scores[row.ids[k]]) * factor);
  }
}

// With S the divisor: d score_j = scale (dw_j / S - sum_k dw_k score_k / S^2).
template <class T>
void one_level_grad(const WeightOptions& options, const Row<T>& row, const T* dweights, T* dscores) {
  const double sum = divisor(options, row);
  double shared = 0.0;
  for (int64_t k = 0; options.renormalise && options.gate == GateKind::score && k < row.top_k; ++k) {
    if (row.ids[k] >= 0) shared += static_cast<double>(dweights[k]) * row.scores[row.ids[k]] / (sum * sum);
  }
  for (int64_t k = 0; k < row.top_k; ++k) {
    if (row.ids[k] >= 0) dscores[row.ids[k]] += static_cast<T>(options.scale * (dweights[k] / sum - shared));
  }
}

// --- two levels -----------------------------------------------------------------------------------------------------

struct GroupSums {
  double all = 0.0;     // S_g
  double chosen = 0.0;  // C_g
  bool is_kept = false;
};

template <class T>
std::vector<GroupSums> group_sums(const WeightOptions& options, const Row<T>& row, double& kept) {
  const int64_t size = row.num_experts / options.groups;
  std::vector<GroupSums> groups(static_cast<size_t>(options.groups));
  for (int64_t e = 0; e < row.num_experts; ++e) groups[static_cast<size_t>(e / size)].all += row.scores[e];
  for (int64_t k = 0; k < row.top_k; ++k) {
    if (row.ids[k] < 0) continue;
    GroupSums& group = groups[static_cast<size_t>(row.ids[k] / size)];
    group.chosen += row.scores[row.ids[k]];
    group.is_kept = true;
  }
  kept = kWeightEpsilon;
  for (const GroupSums& group : groups) kept += group.is_kept ? group.all : 0.0;
  return groups;
}

template <class T>
void two_levels(const WeightOptions& options, const Row<T>& row, T* weights) {
  double kept = 0.0;
  const std::vector<GroupSums> groups = group_sums(options, row, kept);
  const int64_t size = row.num_experts / options.groups;
  for (int64_t k = 0; k < row.top_k; ++k) {
    weights[k] = T{0};
    if (row.ids[k] < 0) continue;
    const GroupSums& group = groups[static_cast<size_t>(row.ids[k] / size)];
    weights[k] =
        static_cast<T>(options.scale * group.all / kept * row.scores[row.ids[k]] / (group.chosen + kWeightEpsilon));
  }
}

// w_e = scale S_g s_e / (A C_g) depends on s_e, on all scores of its group through S_g, on the chosen ones through C_g, and
// on all scores of kept groups through A.
template <class T>
void two_levels_grad(const WeightOptions& options, const Row<T>& row, const T* dweights, T* dscores) {
  double kept = 0.0;
  const std::vector<GroupSums> groups = group_sums(options, row, kept);
  const int64_t size = row.num_experts / options.groups;
  std::vector<double> through_group(groups.size(), 0.0);  // sum of dw_e w_e over the chosen of a group
  double through_all = 0.0;
  for (int64_t k = 0; k < row.top_k; ++k) {
    if (row.ids[k] < 0) continue;
    const auto g = static_cast<size_t>(row.ids[k] / size);
    const double factor = options.scale * groups[g].all / (kept * (groups[g].chosen + kWeightEpsilon));
    const double product = double{dweights[k]} * factor * row.scores[row.ids[k]];
    dscores[row.ids[k]] += static_cast<T>(dweights[k] * factor);
    through_group[g] += product;
    through_all += product;
  }
  for (int64_t k = 0; k < row.top_k; ++k) {
    if (row.ids[k] < 0) continue;
    const auto g = static_cast<size_t>(row.ids[k] / size);
    dscores[row.ids[k]] -= static_cast<T>(through_group[g] / (groups[g].chosen + kWeightEpsilon));
  }
  for (int64_t e = 0; e < row.num_experts; ++e) {
    const auto g = static_cast<size_t>(e / size);
    if (!groups[g].is_kept) continue;
    dscores[e] += static_cast<T>(through_group[g] / (groups[g].all + kWeightEpsilon) - through_all / kept);
  }
}

// Calls visit(options of the part, its first slot, how many slots) for each part of the slots.
template <class Visit>
void each_part(const WeightOptions& options, int64_t num_slots, Visit&& visit) {
  const int64_t count = num_slots / options.parts;
  WeightOptions of_part = options;
  for (int part = 0; part < options.parts; ++part) {
    of_part.scale = part + 1 == options.parts ? options.scale : 1.0;
    visit(of_part, part * count, count);
  }
}

template <class T>
Row<T> row_of(const Tensor& scores, const Tensor& ids, int64_t t) {
  return {scores.data<T>() + t * scores.dim(1), scores.dim(1), ids.data<int32_t>() + t * ids.dim(1), ids.dim(1)};
}

}  // namespace

void routing_weights(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& weights) {
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < ids.dim(0); ++t) {
      T* row = weights.data<T>() + t * ids.dim(1);
      if (options.groups > 0) {
        two_levels(options, row_of<T>(scores, ids, t), row);
      } else {
        each_part(options, ids.dim(1), [&](const WeightOptions& of_part, int64_t first, int64_t count) {
          const Row<T> all = row_of<T>(scores, ids, t);
          one_level(of_part, Row<T>{all.scores, all.num_experts, all.ids + first, count}, row + first);
        });
      }
    }
  });
}

void routing_weights_grad(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                          const Tensor& dscores) {
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    std::fill_n(dscores.data<T>(), dscores.numel(), T{0});
    for (int64_t t = 0; t < ids.dim(0); ++t) {
      const T* given = dweights.data<T>() + t * ids.dim(1);
      T* row = dscores.data<T>() + t * scores.dim(1);
      if (options.groups > 0) {
        two_levels_grad(options, row_of<T>(scores, ids, t), given, row);
      } else {
        each_part(options, ids.dim(1), [&](const WeightOptions& of_part, int64_t first, int64_t count) {
          const Row<T> all = row_of<T>(scores, ids, t);
          one_level_grad(of_part, Row<T>{all.scores, all.num_experts, all.ids + first, count}, given + first, row);
        });
      }
    }
  });
}

}  // namespace cadre
