// SPDX-License-Identifier: Apache-2.0
// What goes with DeepSeek-V3's router in one pass: what the host is told of its logits and scores, and the way back, from the
// gradients of routing weights and of losses to those of the logits.
#pragma once

#include "layers/kernels/gpu/block.hpp"
#include "layers/kernels/gpu/softmax.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

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
