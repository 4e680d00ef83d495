// SPDX-License-Identifier: Apache-2.0
// Which layers of a model each stage of a pipeline holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "comm/exchange/expert_map.hpp"
#include "layers/model/config.hpp"

namespace cadre {

// even: as many layers in each stage. balanced: the busiest stage has as little work for a token as can be, head and MTP modules
// included, which the last stage has.
enum class StageCut : uint8_t { even, balanced };

// Stage `index` of `count`.
struct StagePlace {
  int index = 0;
  int count = 1;
  StageCut cut = StageCut::even;

  bool is_first() const { return index == 0; }
  bool is_last() const { return index == count - 1; }
};

// [first, last); at least one where there are as many layers as stages.
struct LayerRange {
  int first = 0;
  int last = 0;
};
LayerRange layers_of(const ModelConfig& config, const StagePlace& place);

// Where the experts of each layer lie. Layers may differ: which experts are busy, and so have replicas, is known layer by
// layer.

class ExpertMaps {
 public:
  // All layers alike, until set() says otherwise.
  ExpertMaps(ExpertMap everywhere) : everywhere_(std::move(everywhere)) {}  // NOLINT: one map is a map for all

  void set(int layer, ExpertMap map) { of_layer_.insert_or_assign(layer, std::move(map)); }
  const ExpertMap& of(int layer) const {
    const auto found = of_layer_.find(layer);
    return found == of_layer_.end() ? everywhere_ : found->second;
  }

  bool have_replicas() const {
    const auto has = [](const ExpertMap& map) { return map.num_replicas() > map.num_experts(); };
    return has(everywhere_) ||
           std::ranges::any_of(of_layer_, [&](const auto& layer_and_map) { return has(layer_and_map.second); });
  }

  bool operator==(const ExpertMaps&) const = default;

 private:
  ExpertMap everywhere_;
  std::map<int, ExpertMap> of_layer_;
};

}  // namespace cadre
