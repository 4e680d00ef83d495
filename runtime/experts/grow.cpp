// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/grow.hpp"

#include "comm/base/check.hpp"
#include "layers/moe/task.hpp"
#include "runtime/experts/expert_sums.hpp"
#include "runtime/experts/named_experts.hpp"

namespace cadre {
namespace {

constexpr std::string_view kSelectionBias = ".e_score_correction_bias";

// A softmax over twice the experts halves the scores, and what is added to them must follow.
void halve_selection_biases(const std::vector<NamedTensor>& values) {
  for (const auto& [name, memory] : values) {
    if (!name.ends_with(kSelectionBias)) continue;
    for (int64_t e = 0; e < memory.numel(); ++e) memory.data<float>()[e] *= 0.5F;
  }
}

// "0,1" becomes "0,0,1,1": a copy has the id behind its original.
std::string each_twice(const std::string& list) {
  std::string twice;
  for (const std::string& item : words_of(list)) twice += fmt::format("{}{},{}", twice.empty() ? "" : ",", item, item);
  return twice;
}

}  // namespace

RunConfig grown_config(const RunConfig& config, const GrowOptions& options) {
  RunConfig grown = config;
  ModelConfig& model = grown.model;
  CADRE_CHECK(model.n_routed_experts > 0, "the model has no experts", "only mixtures grow");
  check_unnamed(model);
  model.n_routed_experts *= 2;
  model.routing.expert_tasks = each_twice(model.routing.expert_tasks);
  model.num_experts_per_tok = options.top_k == 0 ? 2 * model.num_experts_per_tok : options.top_k;
  if (!renormalises(config.model)) model.norm_topk_prob = false;  // also where a single expert left it without effect
  const bool doubles = model.num_experts_per_tok == 2 * config.model.num_experts_per_tok;
  if (doubles && model.scoring_func == "sigmoid" && !model.norm_topk_prob) model.routed_scaling_factor *= 0.5;
  check(model);
  return grown;
}

void grow_experts(StoredModel& from, StoredModel& to, const GrowOptions& options) {
  const ModelConfig& model = from.config().model;
  const auto num_experts = static_cast<int>(model.n_routed_experts);
  const ExpertSums sums = twice(moe_layers_of(model), num_experts);
  sum_experts(from.values(), to.values(), sums, num_experts);
  sum_experts(from.moments(), to.moments(), sums, num_experts);
  if (model.scoring_func == "softmax") halve_selection_biases(to.values());
  disturb_copies(to.values(), options.noise, options.seed);
  to.values_changed();
}

}  // namespace cadre
