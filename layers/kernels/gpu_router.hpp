// SPDX-License-Identifier: Apache-2.0
// Bodies of the router, a block a token: the choice of experts alone, and DeepSeek-V3's whole router behind its logits.
#pragma once

#include <cmath>
#include <limits>

#include "layers/kernels/gpu_block.hpp"
#include "layers/kernels/gpu_elements.hpp"
#include "layers/kernels/gpu_softmax.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

// A place in the order of a choice: by value, largest first, then by index. In fp64, because a group's score is a sum.
struct Ranked {
  double value;
  int32_t index;
};

CADRE_DEVICE inline bool before(Ranked a, Ranked b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

struct Earlier {
  CADRE_DEVICE Ranked operator()(Ranked a, Ranked b) const { return before(b, a) ? b : a; }
};

inline constexpr int32_t kNoIndex = std::numeric_limits<int32_t>::max();

// The best of `count` values behind `last`; kNoIndex where there is none.
template <class Block, class Value>
CADRE_DEVICE Ranked next_best(Block& block, int64_t count, const Value& value, Ranked last) {
  return block.reduce(
      count, Ranked{-INFINITY, kNoIndex},
      [&](int64_t i) {
        const Ranked here = {static_cast<double>(value(i)), static_cast<int32_t>(i)};
        return before(last, here) ? here : Ranked{-INFINITY, kNoIndex};
      },
      Earlier());
}

// Before the first.
CADRE_DEVICE inline Ranked no_rank_yet() { return {INFINITY, -1}; }

struct TopK {
  const float* scores;
  const float* bias;  // or null
  int32_t* ids;
  int32_t* nans;  // [T]: an expert whose score is NaN, or -1
  int64_t num_experts;
  int64_t num_chosen;

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* row = scores + block.index() * num_experts;
    const auto score = [&](int64_t e) { return bias == nullptr ? row[e] : row[e] + bias[e]; };
    const int32_t nan = block.reduce(
        num_experts, int32_t{-1},
        [&](int64_t e) { return score(e) == score(e) ? int32_t{-1} : static_cast<int32_t>(e); }, Larger());
    block.each(1, [&](int64_t) { nans[block.index()] = nan; });
    if (nan >= 0) return;
    Ranked last = no_rank_yet();
    for (int64_t k = 0; k < num_chosen; ++k) {
      last = next_best(block, num_experts, score, last);
      block.each(1, [&](int64_t) { ids[block.index() * num_chosen + k] = last.index; });
    }
  }
};

// The order of work is that of layers/moe: score, bias, groups, choice, weights.
struct Route {
  RouteRule rule;
  const float* logits;
  const float* bias;  // or null
  float* scores;
  int32_t* ids;
  float* weights;
  int64_t num_experts;
  int64_t top_k;

  // The score of each group [G] in fp64, whether it is kept [G], choice [E].
  int64_t shared_floats() const { return 3 * rule.groups + num_experts; }

  // Groups are as even as possible: the first `num_experts % groups` have one expert more.
  CADRE_DEVICE int64_t first_of(int64_t group) const {
    const int64_t larger = num_experts % rule.groups;
    return group * (num_experts / rule.groups) + (group < larger ? group : larger);
  }

  // The sum of the `summed` best of a group that are not -infinity; -infinity where none is.
  CADRE_DEVICE double group_score(const float* choice, int64_t group) const {
    Ranked last = no_rank_yet();
    double total = 0.0;
    int64_t found = 0;
    for (; found < rule.summed; ++found) {
      Ranked best = {-INFINITY, kNoIndex};
      for (int64_t e = first_of(group); e < first_of(group + 1); ++e) {
        const Ranked here = {static_cast<double>(choice[e]), static_cast<int32_t>(e)};
        if (before(last, here) && before(here, best)) best = here;
      }
      if (best.index == kNoIndex || best.value == -INFINITY) break;
      total += best.value;
      last = best;
    }
    return found == 0 ? -INFINITY : total;
  }

  template <class Block>
  CADRE_DEVICE void score_row(Block& block, float* row_scores) const {
    const float* row = logits + block.index() * num_experts;
    if (rule.softmax) {
      Softmax{logits, scores, num_experts}(block);
    } else {
      block.each(num_experts, [&](int64_t e) { row_scores[e] = logistic(row[e]); });
    }
  }

  template <class Block>
  CADRE_DEVICE void limit_to_groups(Block& block, double* of_group, float* is_kept, float* choice) const {
    block.each(rule.groups, [&](int64_t g) {
      of_group[g] = group_score(choice, g);
      is_kept[g] = 0.0F;
    });
    Ranked last = no_rank_yet();
    for (int64_t k = 0; k < rule.kept; ++k) {
      last = next_best(
          block, rule.groups, [&](int64_t g) { return of_group[g]; }, last);
      if (last.index == kNoIndex) break;
      block.each(1, [&](int64_t) { is_kept[last.index] = 1.0F; });
    }
    block.each(rule.groups, [&](int64_t g) {
      for (int64_t e = first_of(g); is_kept[g] == 0.0F && e < first_of(g + 1); ++e) choice[e] = -INFINITY;
    });
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    float* row_scores = scores + block.index() * num_experts;
    int32_t* row_ids = ids + block.index() * top_k;
    auto* of_group = reinterpret_cast<double*>(block.shared());
    float* is_kept = block.shared() + 2 * rule.groups;
    float* choice = is_kept + rule.groups;
    score_row(block, row_scores);
    block.each(num_experts, [&](int64_t e) { choice[e] = bias == nullptr ? row_scores[e] : row_scores[e] + bias[e]; });
    if (rule.kept < rule.groups) limit_to_groups(block, of_group, is_kept, choice);
    Ranked last = no_rank_yet();
    double total = 0.0;
    for (int64_t k = 0; k < top_k; ++k) {
      last = next_best(
          block, num_experts, [&](int64_t e) { return choice[e]; }, last);
      const bool chosen = last.index != kNoIndex && last.value > -INFINITY;
      if (chosen) total += static_cast<double>(row_scores[last.index]);
      block.each(1, [&](int64_t) { row_ids[k] = chosen ? last.index : -1; });
    }
    const double factor = rule.renormalise ? rule.scale / (total + 1e-20) : rule.scale;
    block.each(top_k, [&](int64_t k) {
      weights[block.index() * top_k + k] =
          row_ids[k] < 0 ? 0.0F : static_cast<float>(static_cast<double>(row_scores[row_ids[k]]) * factor);
    });
  }
};

}  // namespace cadre::gpu
