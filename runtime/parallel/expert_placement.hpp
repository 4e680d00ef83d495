// SPDX-License-Identifier: Apache-2.0
// Where a run puts its experts: in a row, with redundant ones, or as a file of `cadre plan placement` says.
#pragma once

#include <string>

#include "comm/group/communicator.hpp"
#include "layers/model/config.hpp"
#include "layers/model/stage_place.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// The maps of an expert-parallel group of `num_ranks`. Reads parallel.placement, which every rank must see alike; not
// collective. Throws where the file does not fit the model or the ranks.
ExpertMaps place_experts(const ModelConfig& model, const ParallelConfig& parallel, int num_ranks);

// Collective over `world`. Throws on all ranks unless all have the same maps; `placement` is what parallel.placement names.
void check_same_maps(const Communicator& world, const ExpertMaps& maps, const ModelConfig& model,
                     const std::string& placement);

}  // namespace cadre
