// SPDX-License-Identifier: Apache-2.0
// Where a run puts its experts: in a row, with redundant ones, or as a file of `cadre plan placement` says.
#pragma once

#include <cstdint>

#include "layers/model/config.hpp"
#include "layers/model/expert_maps.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// The maps of an expert-parallel group of `num_ranks`. Reads parallel.placement, which every rank must see alike; not
// collective. Throws where the file does not fit the model or the ranks.
ExpertMaps place_experts(const ModelConfig& model, const ParallelConfig& parallel, int num_ranks);

// Of all mixture layers; ranks that see the same placement have the same.
uint64_t hash_of(const ExpertMaps& maps, const ModelConfig& model);

}  // namespace cadre
