// SPDX-License-Identifier: Apache-2.0
// A placement as JSON and back, loads that are refused, and the maps that a model gets.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runtime/placement/plan.hpp"
#include "tests/support/messages.hpp"

namespace cadre::placement_plan_test {
namespace {

using nlohmann::json;
using test::expect_message;
using test::message_of;

// The example of EPLB.
json published_loads() {
  return {
      {"weight",
       {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86}, {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}}}};
}
constexpr PlacementSizes kSizes = {.slots = 16, .groups = 4, .nodes = 2, .ranks = 8};

TEST(PlacementPlan, is_the_same_after_json) {
  for (const PlacementPolicy policy : {PlacementPolicy::cadre, PlacementPolicy::eplb}) {
    ExpertLoads loads = loads_from_json(published_loads(), "loads");
    loads.layers = {4, 7};
    const PlacementPlan plan = plan_placement(loads, kSizes, policy, nullptr);
    const PlacementPlan back = plan_from_json(json::parse(to_json(plan).dump()), "file");
    EXPECT_EQ(back.layers, plan.layers);
    EXPECT_EQ(back.sizes.slots, 16);
    EXPECT_EQ(back.sizes.ranks, 8);
    for (size_t row = 0; row < 2; ++row) EXPECT_EQ(back.slots[row].expert, plan.slots[row].expert);
  }
}

// The arrays that the published example gives: log2phy in the order in which copies were made.
TEST(PlacementPlan, has_the_arrays_of_eplb) {
  const json file =
      to_json(plan_placement(loads_from_json(published_loads(), "loads"), kSizes, PlacementPolicy::eplb, nullptr));
  EXPECT_EQ(file["phy2log"][0], (std::vector<int>{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(file["log2phy"][0][4], (std::vector<int>{7, 5}));
  EXPECT_EQ(file["log2phy"][0][3], (std::vector<int>{6, -1}));
  EXPECT_EQ(file["log2phy"][0][1], (std::vector<int>{15, 13}));
  EXPECT_EQ(file["logcnt"][0], (std::vector<int>{1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1}));
  EXPECT_EQ(file["first_slot"], (std::vector<int>{0, 2, 4, 6, 8, 10, 12, 14, 16}));
}

TEST(PlacementPlan, refuses_loads_that_are_none) {
  const auto refusal = [](const char* text) {
    return message_of([&] { loads_from_json(json::parse(text), "L.json"); });
  };
  expect_message(refusal("[]"), {"L.json", "weight is missing"});
  expect_message(refusal(R"({"weight": []})"), {"L.json"});
  expect_message(refusal(R"({"weight": [1, 2]})"), {"weight[0] is not a list"});
  expect_message(refusal(R"({"weight": [[1, 2], [1, 2, 3]]})"), {"weight[1] has 3 experts, weight[0] has 2"});
  expect_message(refusal(R"({"weight": [[1, 2], [1, -2]]})"), {"weight[1][1] = -2", "number >= 0"});
  expect_message(refusal(R"({"weight": [[1, null]]})"), {"weight[0][1] = null"});
  expect_message(refusal(R"({"weight": [[1, "NaN"]]})"), {"weight[0][1] = \"NaN\""});
  expect_message(refusal(R"({"weight": [[1, 2]], "layer": [1, 2]})"), {"layer is not a list of 1 integers"});
  EXPECT_EQ(refusal(R"({"weight": [[1, 2.5]], "layer": [3]})"), "no error");
}

TEST(PlacementPlan, refuses_files_that_are_none) {
  const json good =
      to_json(plan_placement(loads_from_json(published_loads(), "loads"), kSizes, PlacementPolicy::cadre, nullptr));
  const auto refusal = [&](const std::function<void(json&)>& spoil) {
    json file = good;
    spoil(file);
    return message_of([&] { plan_from_json(file, "P.json"); });
  };
  EXPECT_EQ(refusal([](json&) {}), "no error");
  expect_message(refusal([](json& file) { file = 3; }), {"P.json", "experts"});
  expect_message(refusal([](json& file) { file.erase("ranks"); }), {"ranks is missing"});
  expect_message(refusal([](json& file) { file["replicas"] = 11; }), {"replicas"});
  expect_message(refusal([](json& file) { file["phy2log"][1].erase(0); }), {"phy2log[1]", "16 integers"});
  expect_message(refusal([](json& file) { file["phy2log"][1][3] = 12; }), {"phy2log[1] has expert 12", "11"});
  expect_message(refusal([](json& file) {
                   for (json& expert : file["phy2log"][0]) expert = expert == 7 ? json(3) : expert;
                 }),
                 {"phy2log[0] has no slot with expert 7"});
}

TEST(PlacementPlan, goes_on_only_from_one_like_it) {
  const ExpertLoads loads = loads_from_json(published_loads(), "loads");
  PlacementPlan before = plan_placement(loads, kSizes, PlacementPolicy::cadre, nullptr);
  const auto refusal = [&] {
    return message_of([&] { plan_placement(loads, kSizes, PlacementPolicy::cadre, &before); });
  };
  EXPECT_EQ(refusal(), "no error");
  before.slots.pop_back();
  expect_message(refusal(), {"1 layers of 12 experts on 8 ranks", "2 of 12 on 8"});
}

// Mixtures are its layers 1 and 2.
ModelConfig model_of_three_layers() {
  ModelConfig model;
  model.num_hidden_layers = 3;
  model.first_k_dense_replace = 1;
  model.n_routed_experts = 12;
  return model;
}

TEST(PlacementPlan, rows_without_layers_are_the_mixture_layers) {
  const PlacementPlan plan =
      plan_placement(loads_from_json(published_loads(), "loads"), kSizes, PlacementPolicy::cadre, nullptr);
  const ExpertMaps maps = maps_of(plan, model_of_three_layers(), 8, "P.json");
  EXPECT_EQ(maps.of(2), to_expert_map(plan.slots[1], 12));
  EXPECT_EQ(maps.of(9), ExpertMap::contiguous(12, 8));
}

// Of a run with an MTP module, which evaluation leaves out.
TEST(PlacementPlan, fits_the_model_without_its_modules) {
  ExpertLoads loads = loads_from_json(published_loads(), "loads");
  loads.layers = {2, 3};
  PlacementPlan plan = plan_placement(loads, kSizes, PlacementPolicy::cadre, nullptr);
  EXPECT_EQ(maps_of(plan, model_of_three_layers(), 8, "P.json").of(2), to_expert_map(plan.slots[0], 12));
  plan.layers = {0, 2};
  expect_message(message_of([&] { maps_of(plan, model_of_three_layers(), 8, "P.json"); }),
                 {"P.json is also for layer 0", "the loads must be of this model"});
}

}  // namespace
}  // namespace cadre::placement_plan_test
