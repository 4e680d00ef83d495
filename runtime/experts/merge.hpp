// SPDX-License-Identifier: Apache-2.0
// Fewer experts: those whose outputs are alike become one, the mean of their weights by how much each was used. Hidden
// units of two experts need not correspond, so that the mean of unlike ones is no good expert: what was lost is measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/experts/expert_sums.hpp"
#include "runtime/experts/stored_model.hpp"

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

// Twice as many experts (sparse upcycling, Komatsuzaki et al. 2023, from a mixture instead of a dense model): each becomes
// two neighbours that share its row of the router, its selection bias and its moments of the optimiser.
struct GrowOptions {
  int64_t top_k = 0;    // experts of a token afterwards; 0: twice as many as before
  double noise = 0.01;  // of the second of two, as a share of the root mean square of each weight
  uint64_t seed = 0;
};

// The model afterwards. With twice the top-k and no noise it computes the same, up to rounding: both copies of an expert
// are chosen together and share its weight. Renormalised weights see to that themselves, and so does a softmax over twice
// as many logits, whose selection bias is halved with its scores; for sigmoid scores that are not renormalised
// routed_scaling_factor is halved. Groups rated by their two best experts (noaux_tc with n_group > 1) may be rated
// otherwise afterwards.
RunConfig grown_config(const RunConfig& config, const GrowOptions& options);

// Fills `to`, of grown_config. The moments of both copies are those of the expert.
void grow_experts(StoredModel& from, StoredModel& to, const GrowOptions& options);

}  // namespace cadre
