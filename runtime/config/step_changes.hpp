// SPDX-License-Identifier: Apache-2.0
// Values that change in the course of a run, as in DeepSeek-V3's recipe:
//   [from_step.401]
//   train.batch = 16
//   model.mtp_loss_factor = 0.1
// Steps count from 1. Everything is a pure function of configuration and step, so that a run resumes anywhere.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/config/run_config.hpp"

namespace cadre {

// Whether a [from_step.N] section may hold the key: [model] (of the keys that leave all weights their shapes, which the
// trainer checks), data.sequence_length, and of [train] what a step is made of.
bool may_change(const std::string& key);

// The configuration of `step`, with what trace.* selects cut to the steps that have the same one.
RunConfig config_at(const RunConfig& config, int64_t step);

// Of the steps that have the configuration of `step`, the last.
int64_t last_step_like(const RunConfig& config, int64_t step);

// The first steps of all different configurations up to train.steps, ascending; at least step 1.
std::vector<int64_t> first_steps(const RunConfig& config);

// Progressive training: in each stage only a part of the model learns, as in train.stages = "gate:100,experts:200,all".
// Everything is a pure function of configuration and step, so that a run resumes in the middle of a stage.

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
