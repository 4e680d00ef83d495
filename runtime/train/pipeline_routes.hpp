// SPDX-License-Identifier: Apache-2.0
// Where the stages of a model are: routes[k][stage] is the row of the process grid that holds the stage for the k-th part
// of the micro-batches, as in Program. A pure value.
#pragma once

#include <set>
#include <vector>

#include "layers/model/stage.hpp"

namespace cadre {

struct PipelineRoutes {
  std::vector<std::vector<int>> routes = {{0}};

  int num_stages() const { return static_cast<int>(routes.front().size()); }

  // The stages that a row holds, ascending.
  std::vector<StagePlace> stages_of(int row) const {
    std::set<int> stages;
    for (const std::vector<int>& route : routes) {
      for (int stage = 0; stage < num_stages(); ++stage) {
        if (route[static_cast<size_t>(stage)] == row) stages.insert(stage);
      }
    }
    std::vector<StagePlace> places;
    for (const int stage : stages) places.push_back({stage, num_stages()});
    return places;
  }

  // The rows that hold a stage, ascending.
  std::vector<int> rows_of(int stage) const {
    std::set<int> rows;
    for (const std::vector<int>& route : routes) rows.insert(route[static_cast<size_t>(stage)]);
    return {rows.begin(), rows.end()};
  }
};

}  // namespace cadre
