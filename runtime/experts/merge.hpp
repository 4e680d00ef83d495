// SPDX-License-Identifier: Apache-2.0
// Fewer experts: those whose outputs are alike become one, the mean of their weights by how much each was used. Hidden
// units of two experts need not correspond, so that the mean of unlike ones is no good expert: what was lost is measured.
#pragma once

#include <string>
#include <vector>

#include "runtime/experts/expert_sums.hpp"
#include "runtime/experts/survey.hpp"

namespace cadre {

struct MergeOptions {
  int64_t experts = 0;  // afterwards; 0: half of them
  int64_t top_k = 0;    // experts of a token afterwards; 0: as before, or all when there are fewer
};

// The model afterwards.
RunConfig merged_config(const RunConfig& config, const MergeOptions& options);

// Which experts of a layer become one: again and again the two sets whose members are most alike on average, those of lower
// ids first among equals, until `num_experts` sets are left. Experts of different groups stay apart, and each group keeps
// its share. In order of their lowest member, weighted by load (by 1 where no member was used).
std::vector<ExpertSum> choose_merges(const LayerSurvey& survey, int num_experts, int num_groups);

struct LayerLoss {
  int layer = 0;
  std::vector<ExpertSum> sums;
  double least_similarity = 1.0;  // of two experts that became one
  // Of what the experts made of the probe, weighted by load: |merged output - output|, as a share of |output|.
  double output_change = 0.0;
};

// Fills `to`, of merged_config, and says what was lost. Rows of the router, selection biases and moments are means with
// the same weights.
std::vector<LayerLoss> merge_experts(StoredModel& from, StoredModel& to, const std::vector<LayerSurvey>& surveys);

}  // namespace cadre
