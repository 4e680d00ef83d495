// SPDX-License-Identifier: Apache-2.0
// Which layers of a model each stage of a pipeline holds.
#pragma once

#include <cstdint>

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

}  // namespace cadre
