// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/stage_shapes.hpp"

#include <fmt/format.h>

#include <map>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/train/expert_placement.hpp"

namespace cadre {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

Shapes shapes_of(const ModelConfig& config) {
  Model model(config, place_experts(config, ParallelConfig(), /*num_ranks=*/1), /*expert_rank=*/0);
  ParameterStore store;
  store.add_all(model);
  Shapes shapes;
  for (const Parameter* parameter : store.parameters()) shapes[parameter->name()] = shape_of(parameter->value);
  return shapes;
}

std::string text_of(const Shapes& shapes, const std::string& name) {
  const auto found = shapes.find(name);
  return found == shapes.end() ? "absent" : fmt::format("[{}]", fmt::join(found->second, ","));
}

}  // namespace

void check_stage_shapes(const RunConfig& config) {
  if (config.changes.empty()) return;
  const Shapes first = shapes_of(config_at(config, 1).model);
  for (const int64_t step : first_steps(config)) {
    Shapes here = shapes_of(config_at(config, step).model);
    Shapes all = first;
    all.insert(here.begin(), here.end());
    for (const auto& [name, shape] : all) {
      CADRE_CHECK(
          text_of(first, name) == text_of(here, name),
          fmt::format("from step {} on {} would be {}, was {}", step, name, text_of(here, name), text_of(first, name)),
          "a run keeps the shapes of its weights; [from_step.N] may change what they are trained for");
    }
  }
}

}  // namespace cadre
