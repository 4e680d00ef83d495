// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/row_roles.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "layers/model/stage.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/schedule/verify.hpp"

namespace cadre {
namespace {

// What decides about the memory of a row's first rank, but for the number of micro-batches.
struct RowRole {
  std::vector<StageRole> stages;
  std::vector<size_t> places;  // of the row among those that hold the stage
  int works = 0;
  int passes = 1;
  bool defers = false;
  int partners = 0;  // another row for each: the memory depends on what the partner holds

  auto operator<=>(const RowRole&) const = default;
};

RowRole role_of_row(const RunConfig& config, const Program& program, int row, const Concurrency& concurrency) {
  const PipelineRoutes routes = pipeline_routes(program.routes, config.parallel);
  RowRole role = {.stages = {},
                  .places = {},
                  .works = concurrency.works,
                  .passes = concurrency.passes,
                  .defers = concurrency.defers,
                  .partners = config.checkpoint.partner_copies > 0 ? row : 0};
  for (const StagePlace& place : routes.stages_of(row)) {
    const std::vector<int> rows = routes.rows_of(place.index);
    role.stages.push_back(role_of(config, routes, place));
    role.places.push_back(static_cast<size_t>(std::ranges::find(rows, row) - rows.begin()));
  }
  return role;
}

// Of one rank, in a layer.
double weights_of(const RunConfig& config, const Grid& grid, int64_t layer) {
  const LayerElements elements = layer_elements(config.model, layer);
  return static_cast<double>(elements.attention + elements.router + elements.shared_experts + elements.dense) +
         static_cast<double>(elements.experts) / grid.expert;
}

}  // namespace

StageRole role_of(const RunConfig& config, const PipelineRoutes& routes, const StagePlace& place) {
  StageRole role = {.is_first = place.is_first(),
                    .is_last = place.is_last(),
                    .num_rows = static_cast<int>(routes.rows_of(place.index).size()),
                    .layers = {}};
  const Recompute recompute = recompute_of(config.train);
  const LayerRange layers = layers_of(config.model, place);
  for (int layer = layers.first; layer < layers.last; ++layer) {
    role.layers.push_back((is_moe_layer(config.model, layer) ? 1 : 0) + (recompute.whole_layer(layer) ? 2 : 0));
    if (!config.parallel.placement.empty()) role.layers.push_back(layer);  // each has its own map
  }
  return role;
}

std::vector<int> rows_to_plan(const RunConfig& config, const Program& program) {
  const std::vector<Concurrency> of_row = concurrency_of(program, recompute_of(config.train).every_layer > 0);
  std::map<RowRole, int> most;
  for (int row = 0; row < program.num_ranks; ++row) {
    const Concurrency& concurrency = of_row[static_cast<size_t>(row)];
    const auto [found, is_new] = most.emplace(role_of_row(config, program, row, concurrency), row);
    if (concurrency.lanes > of_row[static_cast<size_t>(found->second)].lanes) found->second = row;
  }
  std::vector<int> rows;
  for (const auto& [role, row] : most) rows.push_back(row);
  std::ranges::sort(rows);
  return rows;
}

double least_bytes(const RunConfig& config, const Grid& grid, const Program& program) {
  const bool has_equal_experts = config.model.expert_kinds == ExpertKinds::same && config.parallel.placement.empty();
  if (!has_equal_experts || has_adapters(config)) return 0.0;
  const auto parts = [](int64_t whole, int64_t count) { return (whole + count - 1) / count; };
  const int64_t sequences = parts(parts(config.train.batch, config.train.micro_batches), grid.data);
  const double rows = static_cast<double>(sequences * config.data.sequence_length * config.model.hidden_size);
  const std::vector<Concurrency> of_row = concurrency_of(program, /*recomputes=*/false);
  double most = 0.0;
  for (int row = 0; row < grid.pipeline; ++row) {
    double weights = 0.0;
    double kept = program.num_stages > 1 ? 2.0 : 0.0;
    for (const StagePlace& place : pipeline_routes(program.routes, config.parallel).stages_of(row)) {
      const LayerRange layers = layers_of(config.model, place);
      for (int layer = layers.first; layer < layers.last; ++layer) weights += weights_of(config, grid, layer);
      kept += layers.last - layers.first;
    }
    const double copies = config.parallel.shard_gradients ? 1.0 : 2.0;  // without a share of the gradients
    most = std::max(most, copies * weights + of_row[static_cast<size_t>(row)].lanes * kept * rows);
  }
  return sizeof(float) * most;
}

}  // namespace cadre
