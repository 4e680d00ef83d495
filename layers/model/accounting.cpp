// SPDX-License-Identifier: Apache-2.0
#include "layers/model/accounting.hpp"

#include <cmath>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

int64_t num_mixtures(const ModelConfig& config) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) count += is_moe_layer(config, layer) ? 1 : 0;
  return count;
}

// A mixture of one expert that every token takes is that expert, but for its router, which is taken off again.
ModelCost dense_cost(const char* name, const ModelConfig& config, int64_t width, int64_t sequence_length) {
  ModelConfig dense = config;
  dense.n_routed_experts = 1;
  dense.num_experts_per_tok = 1;
  dense.n_shared_experts = 0;
  dense.moe_intermediate_size = width;
  dense.topk_method = TopkMethod::greedy;
  dense.expert_kinds = ExpertKinds::same;
  dense.n_group = dense.topk_group = 1;
  const int64_t routers = num_mixtures(config) * config.hidden_size;
  ModelCost cost = {name, count_parameters(dense), flops_per_token(dense, sequence_length)};
  cost.parameters.total -= routers;
  cost.parameters.active -= routers;
  cost.flops_per_token -= 6.0 * static_cast<double>(routers);
  return cost;
}

// n over k, in floating point: each factor divides what is there, so that whole numbers stay whole.
double binomial(int64_t n, int64_t k) {
  double result = 1.0;
  for (int64_t i = 1; i <= k; ++i) result = result * static_cast<double>(n - k + i) / static_cast<double>(i);
  return result;
}

}  // namespace

double expected_coverage(int64_t num_experts, int64_t top_k, int64_t num_tokens) {
  const double missed_by_one = 1.0 - static_cast<double>(top_k) / static_cast<double>(num_experts);
  return 1.0 - std::pow(missed_by_one, static_cast<double>(num_tokens));
}

int64_t tokens_to_cover(int64_t num_experts, int64_t top_k, double share) {
  CADRE_ASSERT(share > 0.0 && share < 1.0);
  int64_t tokens = 1;
  while (expected_coverage(num_experts, top_k, tokens) < share) ++tokens;
  return tokens;
}

DenseComparison compare_with_dense(const ModelConfig& config, int64_t sequence_length) {
  const int64_t width = config.moe_intermediate_size;
  const bool nested = config.expert_kinds == ExpertKinds::mixture;
  const int64_t inner = nested ? config.inner_experts : 1;
  const int64_t inner_met = nested ? config.inner_experts_per_tok : 1;
  const int64_t met = config.num_experts_per_tok * inner_met * width + shared_width(config);
  const int64_t all = config.n_routed_experts * inner * width + shared_width(config);
  return {{"this mixture", count_parameters(config), flops_per_token(config, sequence_length)},
          dense_cost("dense, one expert", config, inner * width, sequence_length),
          dense_cost("dense, what a token meets", config, met, sequence_length),
          dense_cost("dense, all experts", config, all, sequence_length)};
}

std::vector<FineGrained> fine_grained_shapes(const ModelConfig& config, int64_t most) {
  std::vector<FineGrained> shapes;
  for (int64_t factor = 1; factor <= most && config.moe_intermediate_size % factor == 0; factor *= 2) {
    const int64_t experts = factor * config.n_routed_experts;
    const int64_t top_k = factor * config.num_experts_per_tok;
    shapes.push_back({factor, experts, top_k, config.moe_intermediate_size / factor, binomial(experts, top_k),
                      experts * config.hidden_size});
  }
  return shapes;
}

}  // namespace cadre
