// SPDX-License-Identifier: Apache-2.0
// Bodies of the router, a warp a token (of more than 1024 experts, a block): the choice of experts alone, and the whole
// router of DeepSeek-V3 after its logits, forward and backward.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "layers/kernels/gpu/block.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/norm.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

// Floats as integers of the same order: -0 is 0, and NaN comes before all.
CADRE_DEVICE inline uint32_t order_of(float value) {
  if (value != value) return 0;
  const auto bits = std::bit_cast<uint32_t>(value + 0.0F);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000U;
}
CADRE_DEVICE inline float value_of(uint32_t order) {
  return std::bit_cast<float>(order >> 31 != 0 ? order & 0x7fffffffU : ~order);
}
inline constexpr uint32_t kNever = 0x007fffff;  // of -infinity
inline constexpr uint32_t kLastIndex = 0x7fffffff;

// A place in the order of a choice, the best with the largest key: by value, then by the lower index. 0 is no place.
CADRE_DEVICE inline uint64_t key_of(uint32_t order, int64_t index) {
  return uint64_t{order} << 32 | (kLastIndex - static_cast<uint32_t>(index));
}
CADRE_DEVICE inline int32_t index_of(uint64_t key) {
  return static_cast<int32_t>(kLastIndex - static_cast<uint32_t>(key));
}
CADRE_DEVICE inline bool may_be_chosen(uint64_t key) { return key >> 32 > kNever; }

struct TopK {
  const float* scores;
  const float* bias;  // or null
  int32_t* ids;
  int32_t* nans;  // [T]: an expert whose score is NaN, or -1
  int64_t num_experts;
  int64_t num_chosen;
  CADRE_DEVICE int threads() const { return threads_for_scores(num_experts); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* row = scores + block.index() * num_experts;
    const auto score = [&](int64_t e) { return bias == nullptr ? row[e] : row[e] + bias[e]; };
    const int32_t nan = block.reduce(
        num_experts, int32_t{-1},
        [&](int64_t e) { return score(e) == score(e) ? int32_t{-1} : static_cast<int32_t>(e); }, Larger());
    block.each(1, [&](int64_t) { nans[block.index()] = nan; });
    if (nan >= 0) return;
    uint64_t last = ~uint64_t{0};
    for (int64_t k = 0; k < num_chosen; ++k) {
      const auto behind_last = [&](int64_t e) {
        const uint64_t key = key_of(order_of(score(e)), e);
        return key < last ? key : 0;
      };
      last = block.reduce(num_experts, uint64_t{0}, behind_last, Larger());
      block.each(1, [&](int64_t) { ids[block.index() * num_chosen + k] = index_of(last); });
    }
  }
};

// The order of work is that of layers/moe: score, bias, groups, choice, weights.
struct Route {
  RouteRule rule;
  int num_experts;
  int top_k;
  // Groups are as even as possible: the first `num_larger` have one expert more than `group_size`.
  int groups;
  int group_size;
  int num_larger;
  const float* logits = nullptr;
  const float* bias = nullptr;  // or none
  float* scores = nullptr;
  int32_t* ids = nullptr;
  float* weights = nullptr;

  // Whether the body does what the rule says: groups are scored by one or two of their experts, as in V2 and V3.
  static bool fits(const RouteRule& rule, int64_t num_experts) {
    return rule.summed <= 2 && num_experts <= kWarpScores;
  }
  static Route of(const RouteRule& rule, int64_t num_experts, int64_t top_k) {
    return {.rule = rule,
            .num_experts = static_cast<int>(num_experts),
            .top_k = static_cast<int>(top_k),
            .groups = static_cast<int>(rule.groups),
            .group_size = static_cast<int>(num_experts / rule.groups),
            .num_larger = static_cast<int>(num_experts % rule.groups)};
  }
  static constexpr int threads() { return kWarp; }
  int64_t shared_floats() const { return 2 * kWarp + 2 * num_experts + 3 * groups + top_k; }

  // What the threads share, in parts that are aligned whatever the numbers are.
  struct Shared {
    uint64_t* best_of_bin;  // [kWarp]
    float* scores;          // [E]
    uint32_t* choice;       // [E], as order_of(); 0 once chosen
    double* of_group;       // [G]
    int32_t* num_before;    // [G]: groups that are better
    int32_t* chosen;        // [K]
  };
  CADRE_DEVICE Shared divide(float* shared) const {
    float* of_experts = shared + 2 * kWarp;
    float* of_groups = of_experts + 2 * num_experts;
    return {reinterpret_cast<uint64_t*>(shared),
            of_experts,
            reinterpret_cast<uint32_t*>(of_experts + num_experts),
            reinterpret_cast<double*>(of_groups),
            reinterpret_cast<int32_t*>(of_groups + 2 * groups),
            reinterpret_cast<int32_t*>(of_groups + 3 * groups)};
  }

  CADRE_DEVICE int first_of(int group) const { return group * group_size + (group < num_larger ? group : num_larger); }
  CADRE_DEVICE int size_of(int group) const { return group_size + (group < num_larger ? 1 : 0); }

  // The sum of the `summed` best of a group that are not -infinity; -infinity where none is. Each thread starts elsewhere
  // in its group, so that they read different banks.
  CADRE_DEVICE double group_score(const uint32_t* choice, int group) const {
    uint32_t best = kNever;
    uint32_t second = kNever;
    const auto look_at = [&](int first, int end) {
      for (int e = first; e < end; ++e) {
        const uint32_t here = choice[first_of(group) + e];
        const uint32_t lower = here < best ? here : best;
        best = here > best ? here : best;
        second = lower > second ? lower : second;
      }
    };
    const int start = group < size_of(group) ? group : 0;
    look_at(start, size_of(group));
    look_at(0, start);
    const bool adds = rule.summed == 2 && second > kNever;
    return static_cast<double>(value_of(best)) + (adds ? static_cast<double>(value_of(second)) : 0.0);
  }

  template <class Block>
  CADRE_DEVICE void score(Block& block, const Shared& shared) const {
    const float* row = logits + block.index() * num_experts;
    float* row_scores = scores + block.index() * num_experts;
    if (rule.softmax) Softmax{logits, scores, num_experts}(block);
    each_column(block, num_experts, in_fours(num_experts, logits, bias, scores),
                [&]<class V>(std::type_identity<V>, int64_t i) {
                  const V score = rule.softmax ? at<V>(row_scores, i)
                                               : by_float([](float x) { return logistic(x); }, at<V>(row, i));
                  const V offset = bias == nullptr ? V{} : at<V>(bias, i);
                  const auto choice = by_float([](float s, float b) { return order_of(s + b); }, score, offset);
                  if (!rule.softmax) at<V>(row_scores, i) = score;
                  at<V>(shared.scores, i) = score;
                  at<std::remove_const_t<decltype(choice)>>(shared.choice, i) = choice;
                });
  }

  // A group is kept when fewer than `kept` come before it: by score, then by index.
  template <class Block>
  CADRE_DEVICE void limit_to_groups(Block& block, const Shared& shared) const {
    const double* of_group = shared.of_group;
    block.each(groups, [&](int64_t g) { shared.of_group[g] = group_score(shared.choice, static_cast<int>(g)); });
    block.each(groups, [&](int64_t g) {
      int32_t count = 0;
      for (int other = 0; other < groups; ++other) {
        count += of_group[other] > of_group[g] || (of_group[other] == of_group[g] && other < g) ? 1 : 0;
      }
      shared.num_before[g] = count;
    });
    for (int g = 0; g < groups; ++g) {
      if (shared.num_before[g] < rule.kept) continue;
      block.each(size_of(g), [&](int64_t e) { shared.choice[first_of(g) + e] = 0; });
    }
  }

  // Experts lie in kWarp bins, e in bin e % kWarp. Of each the best is known, so that only the bin of the one who was chosen has
  // to be looked at again. The sum of the scores of the chosen.
  template <class Block>
  CADRE_DEVICE double choose(Block& block, const Shared& shared) const {
    const auto key = [&](int64_t e) { return key_of(shared.choice[e], e); };
    block.each(kWarp, [&](int64_t bin) {
      uint64_t best = 0;
      for (auto e = static_cast<int>(bin); e < num_experts; e += kWarp) best = Larger()(best, key(e));
      shared.best_of_bin[bin] = best;
    });
    double total = 0.0;
    for (int k = 0; k < top_k; ++k) {
      const uint64_t best = block.reduce(
          kWarp, uint64_t{0}, [&](int64_t bin) { return shared.best_of_bin[bin]; }, Larger());
      const int32_t expert = may_be_chosen(best) ? index_of(best) : -1;
      if (expert < 0) {
        block.each(1, [&](int64_t) { shared.chosen[k] = -1; });
        continue;
      }
      total += static_cast<double>(shared.scores[expert]);
      const int bin = expert % kWarp;
      const auto of_others = [&](int64_t i) {
        const int other = bin + static_cast<int>(i) * kWarp;
        return other < num_experts && other != expert ? key(other) : 0;
      };
      const uint64_t next = block.reduce(kWarp, uint64_t{0}, of_others, Larger());
      block.each(1, [&](int64_t) {
        shared.chosen[k] = expert;
        shared.choice[expert] = 0;
        shared.best_of_bin[bin] = next;
      });
    }
    return total;
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const Shared shared = divide(block.shared());
    score(block, shared);
    if (rule.kept < rule.groups) limit_to_groups(block, shared);
    const double total = choose(block, shared);
    const double factor = rule.renormalise ? rule.scale / (total + 1e-20) : rule.scale;
    block.each(top_k, [&](int64_t k) {
      const int32_t id = shared.chosen[k];
      ids[block.index() * top_k + k] = id;
      weights[block.index() * top_k + k] =
          id < 0 ? 0.0F : static_cast<float>(static_cast<double>(shared.scores[id]) * factor);
    });
  }
};

// DeepSeek-V3's router in one pass: what the host reads of logits and scores, and the backward pass from the gradients of
// routing weights and losses to the gradients of the logits.
struct RouteFacts {
  const float* logits;
  const float* scores;
  int32_t* not_finite;
  float* inverse;  // or null
  int64_t num_experts;
  CADRE_DEVICE int threads() const { return threads_for_scores(num_experts); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t t = block.index();
    const float* row = logits + t * num_experts;
    const int32_t bad = block.reduce(
        num_experts, int32_t{0}, [&](int64_t e) { return row[e] - row[e] == 0.0F ? 0 : 1; }, Larger());
    block.each(1, [&](int64_t) { not_finite[t] = bad; });
    if (inverse == nullptr) return;
    const float total = sum(block, num_experts, [&](int64_t e) { return scores[t * num_experts + e]; });
    block.each(1, [&](int64_t) { inverse[t] = 1.0F / (total + 1e-20F); });
  }
};

// layers/moe/weights and loss_sums have the formulas.
struct RouteGrad {
  RouteRule rule;
  const float* scores;
  const int32_t* ids;
  const float* dweights;
  const float* by_share;  // or null
  int64_t tokens_a_row;   // of by_share
  const float* by_score;  // or null
  float* dlogits;
  int64_t num_experts;
  int64_t top_k;
  CADRE_DEVICE int threads() const { return threads_for_scores(num_experts); }

  // By the scores, from losses: by_score, and by each share s / (sum of s) through the shares of all experts.
  template <class Block>
  CADRE_DEVICE void add_losses(Block& block, const float* row, float* out) const {
    const float* slope = by_share == nullptr ? nullptr : by_share + block.index() / tokens_a_row * num_experts;
    float total = 1.0F;
    float mean = 0.0F;
    if (slope != nullptr) {
      total = sum(block, num_experts, [&](int64_t e) { return row[e]; }) + 1e-20F;
      mean = sum(block, num_experts, [&](int64_t e) { return slope[e] * row[e]; }) / total;
    }
    block.each(num_experts, [&](int64_t e) {
      const float direct = by_score == nullptr ? 0.0F : by_score[e];
      out[e] = slope == nullptr ? direct : direct + (slope[e] - mean) / total;
    });
  }

  // With S the sum of the chosen scores: d score_j += scale (dw_j / S - sum_k dw_k score_k / S^2), or scale dw_j.
  template <class Block>
  CADRE_DEVICE void add_weights(Block& block, const float* row, float* out) const {
    const int32_t* chosen = ids + block.index() * top_k;
    const float* given = dweights + block.index() * top_k;
    double divisor = 1.0;
    double shared = 0.0;
    if (rule.renormalise) {
      divisor = 1e-20;
      for (int64_t k = 0; k < top_k; ++k) {
        if (chosen[k] < 0) continue;
        divisor += static_cast<double>(row[chosen[k]]);
        shared += static_cast<double>(given[k]) * static_cast<double>(row[chosen[k]]);
      }
      shared /= divisor * divisor;
    }
    block.each(top_k, [&](int64_t k) {
      if (chosen[k] >= 0) {
        out[chosen[k]] += static_cast<float>(rule.scale * (static_cast<double>(given[k]) / divisor - shared));
      }
    });
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* row = scores + block.index() * num_experts;
    float* out = dlogits + block.index() * num_experts;
    add_losses(block, row, out);
    add_weights(block, row, out);
    const float mean = rule.softmax ? sum(block, num_experts, [&](int64_t e) { return row[e] * out[e]; }) : 0.0F;
    block.each(num_experts,
               [&](int64_t e) { out[e] = row[e] * (rule.softmax ? out[e] - mean : out[e] * (1.0F - row[e])); });
  }
};

}  // namespace cadre::gpu
