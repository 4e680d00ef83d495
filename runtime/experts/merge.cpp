// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/merge.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/router/task.hpp"
#include "runtime/experts/expert_sums.hpp"
#include "runtime/experts/stored_model.hpp"

namespace cadre {
namespace {

using Set = std::vector<int>;

double mean_similarity(const LayerSurvey& survey, const Set& a, const Set& b) {
  double sum = 0.0;
  for (const int first : a) {
    for (const int second : b) sum += survey.similarity_of(first, second);
  }
  return sum / static_cast<double>(a.size() * b.size());
}

// Joins the two most similar of the sets.
void join_two(const LayerSurvey& survey, std::vector<Set>& sets) {
  double best = -2.0;
  std::pair<size_t, size_t> joined;
  for (size_t a = 0; a < sets.size(); ++a) {
    for (size_t b = a + 1; b < sets.size(); ++b) {
      const double similarity = mean_similarity(survey, sets[a], sets[b]);
      if (similarity > best) {
        best = similarity;
        joined = {a, b};
      }
    }
  }
  Set& kept = sets[joined.first];
  const Set& other = sets[joined.second];
  kept.insert(kept.end(), other.begin(), other.end());
  std::ranges::sort(kept);
  sets.erase(sets.begin() + static_cast<std::ptrdiff_t>(joined.second));
}

ExpertSum weighted_by_load(const LayerSurvey& survey, const Set& set) {
  const auto load = [&](int expert) { return survey.load[static_cast<size_t>(expert)]; };
  const bool unused = std::ranges::all_of(set, [&](int expert) { return load(expert) == 0; });
  ExpertSum sum;
  for (const int expert : set) {
    if (unused || load(expert) > 0) sum.parts.push_back({expert, unused ? 1 : load(expert)});
  }
  return sum;
}

// Squares of the change and of the output of one expert.
std::pair<double, double> squares_of(const float* before, const std::vector<float>& after) {
  std::pair<double, double> squares = {0.0, 0.0};
  for (size_t i = 0; i < after.size(); ++i) {
    const double change = static_cast<double>(after[i]) - before[i];
    squares.first += change * change;
    squares.second += static_cast<double>(before[i]) * before[i];
  }
  return squares;
}

LayerLoss loss_of(StoredModel& merged, const LayerSurvey& survey, const std::vector<ExpertSum>& sums) {
  LayerLoss loss = {.layer = survey.layer, .sums = sums};
  double changes = 0.0;
  double outputs = 0.0;
  for (size_t e = 0; e < sums.size(); ++e) {
    const std::vector<float> after = run_expert(merged, survey.layer, static_cast<int>(e), survey.rows);
    for (const ExpertSum::Part& part : sums[e].parts) {
      const auto [change, output] =
          squares_of(survey.outputs.data() + static_cast<size_t>(part.expert) * after.size(), after);
      changes += static_cast<double>(part.weight) * change;
      outputs += static_cast<double>(part.weight) * output;
      for (const ExpertSum::Part& other : sums[e].parts) {
        loss.least_similarity = std::min(loss.least_similarity, survey.similarity_of(part.expert, other.expert));
      }
    }
  }
  loss.output_change = outputs == 0.0 ? 0.0 : std::sqrt(changes / outputs);
  return loss;
}

}  // namespace

RunConfig merged_config(const RunConfig& config, const MergeOptions& options) {
  RunConfig merged = config;
  ModelConfig& model = merged.model;
  const int64_t before = model.n_routed_experts;
  CADRE_CHECK(before >= 2, fmt::format("the model has {} experts, allowed: at least 2", before),
              "there is nothing to merge");
  check_unnamed(model);
  CADRE_CHECK(
      model.router.bias.expert_task.empty(),
      fmt::format("model.expert_tasks = {}, allowed: none", key_text(model, "expert_tasks")),
      "experts of different tasks would become one; remove the key from config.json and set it anew afterwards");
  model.n_routed_experts = options.experts == 0 ? before / 2 : options.experts;
  CADRE_CHECK(model.n_routed_experts >= 1 && model.n_routed_experts < before,
              fmt::format("--experts {}, allowed: integer in [1, {}]", model.n_routed_experts, before - 1),
              "a merge leaves fewer experts than there were");
  model.num_experts_per_tok =
      options.top_k == 0 ? std::min(model.num_experts_per_tok, model.n_routed_experts) : options.top_k;
  check(model);
  return merged;
}

std::vector<ExpertSum> choose_merges(const LayerSurvey& survey, int num_experts, int num_groups) {
  const int group_size = survey.num_experts() / num_groups;
  const auto kept = static_cast<size_t>(num_experts / num_groups);
  std::vector<ExpertSum> sums;
  for (int group = 0; group < num_groups; ++group) {
    std::vector<Set> sets;
    for (int e = group * group_size; e < (group + 1) * group_size; ++e) sets.push_back({e});
    while (sets.size() > kept) join_two(survey, sets);
    for (const Set& set : sets) sums.push_back(weighted_by_load(survey, set));
  }
  return sums;
}

std::vector<LayerLoss> merge_experts(StoredModel& from, StoredModel& to, const std::vector<LayerSurvey>& surveys) {
  const ModelConfig& model = to.config().model;
  const auto num_old = static_cast<int>(from.config().model.n_routed_experts);
  ExpertSums sums;
  for (const LayerSurvey& survey : surveys) {
    sums[survey.layer] =
        choose_merges(survey, static_cast<int>(model.n_routed_experts), static_cast<int>(model.n_group));
  }
  sum_experts(from.values(), to.values(), sums, num_old);
  sum_experts(from.moments(), to.moments(), sums, num_old);
  to.values_changed();
  std::vector<LayerLoss> losses;
  for (const LayerSurvey& survey : surveys) losses.push_back(loss_of(to, survey, sums[survey.layer]));
  return losses;
}

namespace {

constexpr std::string_view kSelectionBias = ".e_score_correction_bias";

// A softmax over twice the experts halves the scores, and what is added to them must follow.
void halve_selection_biases(const std::vector<NamedTensor>& values) {
  for (const auto& [name, memory] : values) {
    if (!name.ends_with(kSelectionBias)) continue;
    for (int64_t e = 0; e < memory.numel(); ++e) memory.data<float>()[e] *= 0.5F;
  }
}

// 0,1 becomes 0,0,1,1: a copy has the id behind its original.
std::vector<int32_t> each_twice(const std::vector<int32_t>& list) {
  std::vector<int32_t> twice;
  for (const int32_t item : list) twice.insert(twice.end(), 2, item);
  return twice;
}

}  // namespace

RunConfig grown_config(const RunConfig& config, const GrowOptions& options) {
  RunConfig grown = config;
  ModelConfig& model = grown.model;
  CADRE_CHECK(model.n_routed_experts > 0, "the model has no experts", "only mixtures grow");
  check_unnamed(model);
  model.n_routed_experts *= 2;
  model.router.bias.expert_task = each_twice(model.router.bias.expert_task);
  model.num_experts_per_tok = options.top_k == 0 ? 2 * model.num_experts_per_tok : options.top_k;
  if (!renormalises(config.model)) model.norm_topk_prob = false;  // also where a single expert left it without effect
  const bool doubles = model.num_experts_per_tok == 2 * config.model.num_experts_per_tok;
  if (doubles && model.scoring_func == ScoreFunction::sigmoid && !model.norm_topk_prob)
    model.routed_scaling_factor *= 0.5;
  check(model);
  return grown;
}

void grow_experts(StoredModel& from, StoredModel& to, const GrowOptions& options) {
  const ModelConfig& model = from.config().model;
  const auto num_experts = static_cast<int>(model.n_routed_experts);
  const ExpertSums sums = twice(moe_layers_of(model), num_experts);
  sum_experts(from.values(), to.values(), sums, num_experts);
  sum_experts(from.moments(), to.moments(), sums, num_experts);
  if (model.scoring_func == ScoreFunction::softmax) halve_selection_biases(to.values());
  disturb_copies(to.values(), options.noise, options.seed);
  to.values_changed();
}

}  // namespace cadre
