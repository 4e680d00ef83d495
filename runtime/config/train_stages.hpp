// SPDX-License-Identifier: Apache-2.0
// Progressive training: in each stage only a part of the model learns, as in train.stages = "gate:100,experts:200,all".
// Everything is a pure function of configuration and step, so that a run resumes in the middle of a stage.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/config/run_config.hpp"

namespace cadre {

// gate: routers with their selection biases. experts: routed and shared experts. rest: everything else, which only a stage
// `all` trains.
enum class ModelPart : uint8_t { gate, experts, rest };
enum class Trained : uint8_t { gate, experts, all };

// Updates of the optimiser so far, of each ModelPart.
using UpdateCounts = std::array<int64_t, 3>;

ModelPart part_of_parameter(std::string_view name);
inline bool trains(Trained trained, ModelPart part) {
  return trained == Trained::all || static_cast<uint8_t>(trained) == static_cast<uint8_t>(part);
}
std::string_view name_of(Trained trained);  // "gate", "experts", "all"

struct TrainStage {
  Trained trained = Trained::all;
  int64_t steps = 0;  // of the last stage: all that are left
};

// At least one. Throws when train.stages cannot be read, or when no step is left for the last stage.
std::vector<TrainStage> train_stages(const TrainConfig& config);

// What step number `step`, from 0, trains.
Trained trained_at(const std::vector<TrainStage>& stages, int64_t step);
// How many of the steps 0 .. step trained the part: what bias correction of AdamW counts.
int64_t updates_of(const std::vector<TrainStage>& stages, ModelPart part, int64_t step);

}  // namespace cadre
