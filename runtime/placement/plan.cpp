// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/plan.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/model/model.hpp"
#include "runtime/placement/policies.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr const char* kSchema = "cadre.placement/1";
constexpr const char* kLoadsHint = R"(expected {"weight": [[load of each expert], one list for each layer]})";
constexpr const char* kPlanHint = "expected what cadre plan placement --json writes";

double load_from(const json& value, size_t row, size_t column, const std::string& where) {
  const double load = value.is_number() ? value.get<double>() : std::nan("");
  CADRE_CHECK(std::isfinite(load) && load >= 0,
              fmt::format("{}: weight[{}][{}] = {}, allowed: number >= 0", where, row, column, value.dump()),
              kLoadsHint);
  return load;
}

// The layers of the rows, or none.
std::vector<int> layers_from(const json& file, size_t num_rows, const std::string& where) {
  if (!file.contains("layer") || file["layer"].is_null()) return {};
  const json& layers = file["layer"];
  const bool are_integers = layers.is_array() && std::ranges::all_of(layers, &json::is_number_integer);
  CADRE_CHECK(are_integers && layers.size() == num_rows,
              fmt::format("{}: layer is not a list of {} integers, one for each row", where, num_rows),
              "leave it out where the rows are the mixture layers in order");
  return layers.get<std::vector<int>>();
}

int number_from(const json& file, const char* key, int least, const std::string& where) {
  CADRE_CHECK(file.is_object() && file.contains(key) && file[key].is_number_integer() &&
                  file[key].get<int64_t>() >= least && file[key].get<int64_t>() <= 1 << 24,
              fmt::format("{}: {} is missing or not an integer >= {}", where, key, least), kPlanHint);
  return file[key].get<int>();
}

ExpertSlots slots_from(const json& row, size_t index, const PlacementPlan& plan, const std::string& where) {
  const bool are_integers = row.is_array() && std::ranges::all_of(row, &json::is_number_integer);
  CADRE_CHECK(are_integers && static_cast<int>(row.size()) == plan.sizes.slots,
              fmt::format("{}: phy2log[{}] is not a list of {} integers", where, index, plan.sizes.slots), kPlanHint);
  ExpertSlots slots;
  slots.first_slot = even_parts(plan.sizes.slots, plan.sizes.ranks);
  for (const json& value : row) {
    const auto expert = value.get<int64_t>();
    CADRE_CHECK(expert >= ExpertSlots::kEmpty && expert < plan.num_experts,
                fmt::format("{}: phy2log[{}] has expert {}, allowed: -1 (empty) to {}", where, index, expert,
                            plan.num_experts - 1),
                kPlanHint);
    slots.expert.push_back(static_cast<int>(expert));
  }
  number_copies(slots, plan.num_experts);
  const std::vector<int> copies = count_copies(slots, plan.num_experts);
  const auto missing = std::ranges::find(copies, 0);
  CADRE_CHECK(missing == copies.end(),
              fmt::format("{}: phy2log[{}] has no slot with expert {}", where, index, missing - copies.begin()),
              kPlanHint);
  return slots;
}

json slots_of_experts(const ExpertSlots& slots, const std::vector<int>& copies, int most_copies) {
  json experts = json::array();
  for (size_t expert = 0; expert < copies.size(); ++expert) {
    experts.push_back(std::vector<int>(static_cast<size_t>(most_copies), ExpertSlots::kEmpty));
  }
  for (int slot = 0; slot < slots.num_slots(); ++slot) {
    if (slots.expert[slot] != ExpertSlots::kEmpty) experts[slots.expert[slot]][slots.copy[slot]] = slot;
  }
  return experts;
}

void check_before(const PlacementPlan& before, const ExpertLoads& loads, const PlacementSizes& sizes) {
  CADRE_CHECK(before.num_experts == loads.num_experts() && before.slots.size() == loads.weight.size() &&
                  before.sizes.ranks == sizes.ranks,
              fmt::format("the placement before has {} layers of {} experts on {} ranks, the new one {} of {} on {}",
                          before.slots.size(), before.num_experts, before.sizes.ranks, loads.weight.size(),
                          loads.num_experts(), sizes.ranks),
              "leave --previous out to plan afresh");
  CADRE_CHECK(before.layers.empty() || loads.layers.empty() || before.layers == loads.layers,
              "the placement before is for other layers of the model than the loads",
              "leave --previous out to plan afresh");
}

}  // namespace

ExpertLoads loads_from_json(const json& file, const std::string& where) {
  CADRE_CHECK(file.is_object() && file.contains("weight") && file["weight"].is_array() && !file["weight"].empty(),
              fmt::format("{}: weight is missing or not a list of lists", where), kLoadsHint);
  ExpertLoads loads;
  for (const json& row : file["weight"]) {
    const size_t index = loads.weight.size();
    CADRE_CHECK(row.is_array() && !row.empty(), fmt::format("{}: weight[{}] is not a list of numbers", where, index),
                kLoadsHint);
    CADRE_CHECK(index == 0 || row.size() == loads.weight.front().size(),
                fmt::format("{}: weight[{}] has {} experts, weight[0] has {}", where, index, row.size(),
                            index == 0 ? 0 : loads.weight.front().size()),
                "all layers have the same number");
    std::vector<double>& weights = loads.weight.emplace_back();
    for (const json& value : row) weights.push_back(load_from(value, index, weights.size(), where));
  }
  loads.layers = layers_from(file, loads.weight.size(), where);
  return loads;
}

PlacementPlan plan_placement(const ExpertLoads& loads, const PlacementSizes& sizes, PlacementPolicy policy,
                             const PlacementPlan* before) {
  if (before != nullptr) check_before(*before, loads, sizes);
  if (policy == PlacementPolicy::eplb) check_eplb(loads.num_experts(), sizes);
  PlacementPlan plan = {policy, loads.num_experts(), sizes, loads.layers, {}};
  for (size_t row = 0; row < loads.weight.size(); ++row) {
    const std::vector<double>& weight = loads.weight[row];
    plan.slots.push_back(policy == PlacementPolicy::eplb
                             ? eplb(weight, sizes)
                             : cadre_placement(weight, sizes, before == nullptr ? nullptr : &before->slots[row]));
  }
  return plan;
}

json to_json(const PlacementPlan& plan) {
  std::vector<std::vector<int>> copies;
  int most_copies = 0;
  for (const ExpertSlots& slots : plan.slots) {
    copies.push_back(count_copies(slots, plan.num_experts));
    most_copies = std::max(most_copies, std::ranges::max(copies.back()));
  }
  json phy2log = json::array();
  json log2phy = json::array();
  for (size_t row = 0; row < plan.slots.size(); ++row) {
    phy2log.push_back(plan.slots[row].expert);
    log2phy.push_back(slots_of_experts(plan.slots[row], copies[row], most_copies));
  }
  return {{"schema", kSchema},
          {"policy", plan.policy == PlacementPolicy::eplb ? "eplb" : "cadre"},
          {"experts", plan.num_experts},
          {"replicas", plan.sizes.slots},
          {"groups", plan.sizes.groups},
          {"nodes", plan.sizes.nodes},
          {"ranks", plan.sizes.ranks},
          {"first_slot", even_parts(plan.sizes.slots, plan.sizes.ranks)},
          {"layer", plan.layers.empty() ? json() : json(plan.layers)},
          {"phy2log", phy2log},
          {"log2phy", log2phy},
          {"logcnt", copies}};
}

PlacementPlan plan_from_json(const json& file, const std::string& where) {
  PlacementPlan plan;
  plan.num_experts = number_from(file, "experts", 1, where);
  plan.sizes.ranks = number_from(file, "ranks", 1, where);
  plan.sizes.slots = number_from(file, "replicas", plan.num_experts, where);
  CADRE_CHECK(file.contains("phy2log") && file["phy2log"].is_array() && !file["phy2log"].empty(),
              fmt::format("{}: phy2log is missing or not a list of lists", where), kPlanHint);
  for (const json& row : file["phy2log"]) plan.slots.push_back(slots_from(row, plan.slots.size(), plan, where));
  plan.layers = layers_from(file, plan.slots.size(), where);
  return plan;
}

ExpertMaps maps_of(const PlacementPlan& plan, const ModelConfig& model, int num_ranks, const std::string& where) {
  const auto num_experts = static_cast<int>(model.n_routed_experts);
  const std::vector<int> moe_layers = moe_layers_of(model);
  CADRE_CHECK(plan.num_experts == num_experts && plan.sizes.ranks == num_ranks,
              fmt::format("{} places {} experts on {} ranks, the run has {} on {}", where, plan.num_experts,
                          plan.sizes.ranks, num_experts, num_ranks),
              "plan again with cadre plan placement for the ranks of an expert-parallel group, or run without it");
  const std::vector<int>& layers = plan.layers.empty() ? moe_layers : plan.layers;
  CADRE_CHECK(
      layers.size() == plan.slots.size(),
      fmt::format("{} has {} layers, the model has {} with experts", where, plan.slots.size(), moe_layers.size()),
      "the loads must be of this model");
  ExpertMaps maps = ExpertMap::contiguous(num_experts, num_ranks);
  for (size_t row = 0; row < layers.size(); ++row) {
    CADRE_CHECK(is_moe_layer(model, layers[row]),
                fmt::format("{} is also for layer {}, which has no experts in this model", where, layers[row]),
                "the loads must be of this model");
    maps.set(layers[row], to_expert_map(plan.slots[row], num_experts));
  }
  return maps;
}

}  // namespace cadre
