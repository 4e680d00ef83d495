// SPDX-License-Identifier: Apache-2.0
// What a mixture costs beside dense models, how its experts could be cut finer, and how soon all of them are used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre {

// The share of the N experts of a layer that M tokens are expected to visit when each takes K of them evenly and by
// itself: 1 - (1 - K / N)^M.
double expected_coverage(int64_t num_experts, int64_t top_k, int64_t num_tokens);
// The fewest tokens that are expected to visit that share, in (0, 1).
int64_t tokens_to_cover(int64_t num_experts, int64_t top_k, double share);

struct ModelCost {
  std::string name;
  ParameterCount parameters;
  double flops_per_token = 0.0;
};

// The mixture, and what it would be with a dense network in the place of each of its mixtures: as wide as one expert, as
// all that one token meets (shared experts too), and as all experts there are. Attention, embeddings and the router
// count where they are. Of a model with mixtures.
struct DenseComparison {
  ModelCost mixture, one_expert, met_by_a_token, all_experts;
};
DenseComparison compare_with_dense(const ModelConfig& config, int64_t sequence_length);

// The same experts cut finer (DeepSeekMoE, Dai et al. 2024): each in `factor`, of which a token takes as many times more, so
// that the parameters of experts and their FLOPs stay as they are. The ways to choose grow.
struct FineGrained {
  int64_t factor = 1;
  int64_t experts = 0;
  int64_t top_k = 0;
  int64_t width = 0;              // of one
  double combinations = 0.0;      // experts over top_k; exact below 2^53
  int64_t router_parameters = 0;  // of a layer
};
// By the factors 1, 2, 4, ... that divide the width of an expert, up to `most`.
std::vector<FineGrained> fine_grained_shapes(const ModelConfig& config, int64_t most);

}  // namespace cadre
