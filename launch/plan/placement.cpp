// SPDX-License-Identifier: Apache-2.0
// cadre plan placement: which experts get copies, and which rank holds what, from how busy each expert was.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"
#include "launch/command.hpp"
#include "launch/plan/planned_job.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/placement/plan.hpp"
#include "runtime/placement/policies.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

struct PlanPlacementArguments {
  std::string loads;
  int64_t replicas = 0;
  int64_t groups = 1;
  int64_t nodes = 1;
  int64_t ranks = 0;
  std::string policy = "cadre";
  std::string previous;
  std::string json;
};

PlacementSizes sizes_of(const PlanPlacementArguments& options, int num_experts) {
  CADRE_CHECK(options.ranks > 0, "--ranks is missing", "the ranks of one expert-parallel group");
  CADRE_CHECK(options.nodes <= options.ranks, fmt::format("--nodes {} with --ranks {}", options.nodes, options.ranks),
              "each node needs at least one rank");
  CADRE_CHECK(options.groups <= num_experts,
              fmt::format("--groups {}, the loads are of {} experts", options.groups, num_experts),
              "each group needs at least one expert");
  CADRE_CHECK(options.replicas == 0 || options.replicas >= num_experts,
              fmt::format("--replicas {}, allowed: 0 or at least the {} experts", options.replicas, num_experts),
              "the number includes the first copy of each expert");
  return {.slots = options.replicas == 0 ? num_experts : static_cast<int>(options.replicas),
          .groups = static_cast<int>(options.groups),
          .nodes = static_cast<int>(options.nodes),
          .ranks = static_cast<int>(options.ranks)};
}

// How even a layer is, with other placements beside.
struct LayerFigures {
  std::vector<double> loads;  // by rank
  double contiguous = 0.0;    // max / mean
  double planned = 0.0;
  std::optional<double> eplb;
  int copied = 0;  // experts with more than one copy
  int most_copies = 0;
  int empty = 0;  // slots
  std::optional<int> moved;
};

LayerFigures figures_of(const PlacementPlan& plan, size_t row, const std::vector<double>& weight,
                        const PlacementPlan* before) {
  const ExpertSlots& slots = plan.slots[row];
  const std::vector<int> copies = count_copies(slots, plan.num_experts);
  LayerFigures figures;
  figures.loads = rank_loads(slots, weight);
  figures.contiguous = max_over_mean(rank_loads(contiguous_slots(plan.num_experts, plan.sizes.ranks), weight));
  figures.planned = max_over_mean(figures.loads);
  if (eplb_can_run(plan.num_experts, plan.sizes)) {
    figures.eplb = max_over_mean(rank_loads(eplb(weight, plan.sizes), weight));
  }
  figures.copied = static_cast<int>(std::ranges::count_if(copies, [](int count) { return count > 1; }));
  figures.most_copies = std::ranges::max(copies);
  figures.empty = static_cast<int>(std::ranges::count(slots.expert, ExpertSlots::kEmpty));
  if (before != nullptr) figures.moved = copies_moved(before->slots[row], slots);
  return figures;
}

std::string text_of(const std::optional<double>& number) { return number ? fmt::format("{:.3f}", *number) : "-"; }

void print_table(const PlacementPlan& plan, const std::vector<LayerFigures>& figures) {
  fmt::print("max/mean load of the ranks\n{:>5} {:>11} {:>7} {:>8} {:>8} {:>12} {:>6} {:>6}\n", "layer", "contiguous",
             "eplb", "planned", "copied", "most copies", "empty", "moved");
  for (size_t row = 0; row < figures.size(); ++row) {
    const LayerFigures& layer = figures[row];
    fmt::print("{:>5} {:>11.3f} {:>7} {:>8.3f} {:>8} {:>12} {:>6} {:>6}\n",
               plan.layers.empty() ? static_cast<int>(row) : plan.layers[row], layer.contiguous, text_of(layer.eplb),
               layer.planned, layer.copied, layer.most_copies, layer.empty,
               layer.moved ? fmt::format("{}", *layer.moved) : "-");
  }
}

nlohmann::json placement_report(const PlacementPlan& plan, const std::vector<LayerFigures>& figures,
                                double made_in_ms) {
  nlohmann::json json = to_json(plan);
  json["made_in_ms"] = made_in_ms;
  for (const LayerFigures& layer : figures) {
    json["loads"].push_back(layer.loads);
    json["max_over_mean"].push_back(layer.planned);
    json["contiguous_max_over_mean"].push_back(layer.contiguous);
    json["eplb_max_over_mean"].push_back(layer.eplb ? nlohmann::json(*layer.eplb) : nlohmann::json());
    json["moved"].push_back(layer.moved ? nlohmann::json(*layer.moved) : nlohmann::json());
  }
  return json;
}

void run_plan_placement(const PlanPlacementArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  const ExpertLoads loads = read_loads(options.loads);
  const PlacementSizes sizes = sizes_of(options, loads.num_experts());
  const PlacementPolicy policy = options.policy == "eplb" ? PlacementPolicy::eplb : PlacementPolicy::cadre;
  std::optional<PlacementPlan> before;
  if (!options.previous.empty()) before = plan_from_json(read_json_file(options.previous), options.previous);
  const PlacementPlan* previous = before ? &*before : nullptr;

  const int64_t begin_ns = trace_clock_ns();
  const PlacementPlan plan = plan_placement(loads, sizes, policy, previous);
  const double made_in_ms = static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6;

  std::vector<LayerFigures> figures;
  for (size_t row = 0; row < loads.weight.size(); ++row) {
    figures.push_back(figures_of(plan, row, loads.weight[row], previous));
  }
  fmt::print("policy {}: {} experts in {} slots on {} ranks of {} nodes, {} groups\n", options.policy, plan.num_experts,
             sizes.slots, sizes.ranks, sizes.nodes, sizes.groups);
  print_table(plan, figures);
  fmt::print("{} layers planned in {:.1f} ms\n", figures.size(), made_in_ms);
  if (!options.json.empty()) write_text_file(options.json, placement_report(plan, figures, made_in_ms).dump() + "\n");
}

}  // namespace

Command plan_placement_command() {
  const auto options = std::make_shared<PlanPlacementArguments>();
  return {.name = "placement",
          .summary = "decides which experts get copies and which rank holds them, so that loads are even",
          .options = {{"loads", &options->loads, any(),
                       R"(loads of the experts: {"weight": [[..], ..]}, the folder of a run, or its metrics.jsonl)"},
                      {"replicas", &options->replicas, between(0, 1 << 20),
                       "slots of all ranks together; 0: one per expert"},
                      {"groups", &options->groups, between(1, 1 << 20), "groups of experts; each stays on one node"},
                      {"nodes", &options->nodes, between(1, 1 << 16), "nodes of the ranks"},
                      {"ranks", &options->ranks, between(0, 1 << 16), "ranks of an expert-parallel group"},
                      {"policy", &options->policy, one_of({"cadre", "eplb"}),
                       "eplb: the balancer of DeepSeek, for sizes that divide"},
                      {"previous", &options->previous, any(), "earlier result (JSON); few copies move away from it"},
                      {"json", &options->json, any(),
                       "also write the result to this file, as JSON, for parallel.placement"}},
          .run = [options](const Job& job) { run_plan_placement(*options, job); }};
}

}  // namespace cadre
