// SPDX-License-Identifier: Apache-2.0
// Where the experts of each layer lie. Layers may differ: which experts are busy, and so have replicas, is known layer by
// layer.
#pragma once

#include <algorithm>
#include <map>
#include <utility>

#include "comm/exchange/expert_map.hpp"

namespace cadre {

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
