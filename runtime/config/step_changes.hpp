// SPDX-License-Identifier: Apache-2.0
// Values that change in the course of a run, as in DeepSeek-V3's recipe:
//   [from_step.401]
//   train.batch = 16
//   model.mtp_loss_factor = 0.1
// Steps count from 1. Everything is a pure function of configuration and step, so that a run resumes anywhere.
#pragma once

#include <cstdint>
#include <string>
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

}  // namespace cadre
