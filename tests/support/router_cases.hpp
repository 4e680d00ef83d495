// SPDX-License-Identifier: Apache-2.0
// A small layer with eight experts for tests of routers.
#pragma once

#include <vector>

#include "tests/support/layer_run.hpp"

namespace cadre::test {

inline constexpr int64_t kHidden = 10;
inline constexpr int64_t kTokens = 24;

struct RouterCase {
  const char* name;
  RouterOptions router;
  bool is_smooth = true;  // false: a straight-through gradient, which central differences do not see
  bool has_tasks = false;
  bool first_rank_empty = false;
  bool ragged_k = false;
  ExpertKinds kinds = ExpertKinds::same;
};

inline RouterOptions router(int top_k = 2) {
  return {.hidden = kHidden, .num_experts = 8, .top_k = top_k, .score = ScoreFunction::softmax, .init_std = 0.5};
}

template <class Change>
RouterOptions with(Change&& change, int top_k = 2) {
  RouterOptions options = router(top_k);
  change(options);
  return options;
}

// A bias that sends most tokens to the first experts, so that capacities are felt; noise of uneven width; a history of factors.
inline void skew(Parameter& parameter) {
  if (parameter.name().ends_with("noise.weight")) {
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      parameter.value.data<double>()[i] = 0.3 * static_cast<double>(i * 7 % 5) - 0.6;
    }
  }
  if (parameter.name().ends_with(".history")) {
    auto* values = parameter.value.data<double>();
    const int64_t size = parameter.value.numel() / 3;
    for (int64_t i = 0; i < size; ++i) {
      values[i] = 0.01 * static_cast<double>(i % 3);
      values[size + i] = 0.01 * static_cast<double>(i % 5);
      values[2 * size + i] = 10.0;
    }
  }
  if (!parameter.name().ends_with("e_score_correction_bias")) return;
  for (int e = 0; e < 8; ++e) parameter.value.data<double>()[e] = 0.3 / (1.0 + e);
}

inline LayerCase layer_case_of(const RouterCase& router_case) {
  LayerCase layer_case = {.options = {.hidden = kHidden, .expert_width = 6, .shared_width = 4, .init_std = 0.5},
                          .num_tokens = kTokens,
                          .sequence_length = 2,  // on any number of ranks whole sequences
                          .first_rank_empty = router_case.first_rank_empty,
                          .prepare = skew};
  layer_case.options.router = router_case.router;
  layer_case.options.expert_kinds = router_case.kinds;
  layer_case.options.inner_experts = 3;
  layer_case.options.inner_top_k = 2;
  for (int32_t t = 0; t < kTokens; ++t) {
    if (router_case.has_tasks) layer_case.tasks.push_back(t % 6 - 1);
    if (router_case.ragged_k) layer_case.experts_a_token.push_back(1 + t % 4);
  }
  return layer_case;
}

}  // namespace cadre::test
