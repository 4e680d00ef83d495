// SPDX-License-Identifier: Apache-2.0
// What the experts of a model are like, measured on a probe: rows that real text brings to each mixture layer, which every
// expert of the layer is run on.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/order.hpp"
#include "runtime/experts/stored_model.hpp"

namespace cadre {

struct LayerSurvey {
  int layer = 0;
  std::vector<double> norms = {};       // [E] Euclidean norm of all weights of an expert
  std::vector<int64_t> load = {};       // [E] slots that the router gave it on the probe
  std::vector<double> similarity = {};  // [E,E] cosine of the outputs of two experts, all rows of the probe together
  std::vector<float> rows = {};         // [T,H] what came to the layer
  std::vector<float> outputs = {};      // [E,T,H] what each expert made of it

  int num_experts() const { return static_cast<int>(load.size()); }
  double similarity_of(int a, int b) const { return similarity[static_cast<size_t>(a * num_experts() + b)]; }
};

// Over the first `num_sequences` sequences that `reader` gives at its first step, one survey a mixture layer. Holds the
// outputs of all experts: E T H numbers a layer.
std::vector<LayerSurvey> survey_experts(StoredModel& model, const BatchReader& reader, int64_t num_sequences);

// The outputs [T,H] of one expert of a layer for rows [T,H].
std::vector<float> run_expert(StoredModel& model, int layer, int expert, const std::vector<float>& rows);

}  // namespace cadre
