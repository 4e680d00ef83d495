// SPDX-License-Identifier: Apache-2.0
// Twice as many experts (sparse upcycling, Komatsuzaki et al. 2023, from a mixture instead of a dense model): each becomes
// two neighbours that share its row of the router, its selection bias and its moments of the optimiser.
#pragma once

#include "runtime/experts/stored_model.hpp"

namespace cadre {

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
