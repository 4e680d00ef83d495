// SPDX-License-Identifier: Apache-2.0
// The placement of all layers, as `cadre plan placement` makes and writes it and as a run reads it (parallel.placement).
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/model/stage_place.hpp"
#include "runtime/placement/expert_slots.hpp"

namespace cadre {

// How busy each expert was.
struct ExpertLoads {
  std::vector<int> layers;                  // of the model, by row; empty: not known
  std::vector<std::vector<double>> weight;  // [rows][experts]

  int num_experts() const { return static_cast<int>(weight.front().size()); }
};

// {"weight": [[..], ..]} and optionally {"layer": [..]}. Throws, and names row and column, unless all rows are equally long
// and hold finite numbers that are not negative. `where` names the file.
ExpertLoads loads_from_json(const nlohmann::json& json, const std::string& where);

enum class PlacementPolicy { cadre, eplb };

struct PlacementPlan {
  PlacementPolicy policy = PlacementPolicy::cadre;
  int num_experts = 0;
  PlacementSizes sizes;
  std::vector<int> layers;         // as of the loads
  std::vector<ExpertSlots> slots;  // by row
};

// Every row for itself. `before` may be null; throws where it is for other experts, ranks or layers, and where the policy
// cannot have these sizes. Policy eplb leaves it out of account.
PlacementPlan plan_placement(const ExpertLoads& loads, const PlacementSizes& sizes, PlacementPolicy policy,
                             const PlacementPlan* before);

// EPLB's names: phy2log [rows][slots], log2phy [rows][experts][most copies], logcnt [rows][experts]; -1 is none.
nlohmann::json to_json(const PlacementPlan& plan);
PlacementPlan plan_from_json(const nlohmann::json& json, const std::string& where);

// The maps of the model; where the plan does not name layers, its rows are the mixture layers, in order. Throws unless the
// plan is for these layers, experts and ranks; MTP modules may be missing, as at inference. `where` names it.
ExpertMaps maps_of(const PlacementPlan& plan, const ModelConfig& model, int num_ranks, const std::string& where);

}  // namespace cadre
