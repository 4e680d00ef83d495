// SPDX-License-Identifier: Apache-2.0
// data.mixture, read: data sets by task and how often each is drawn from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config/run_config.hpp"

namespace cadre {

inline constexpr int32_t kNoTask = -1;

struct MixtureEntry {
  int32_t task = kNoTask;  // a TaskType, as a number
  int64_t weight = 1;      // sequences of each round of the sum of all weights
  std::string path;
};

// The entries of data.mixture, TASK:WEIGHT:PATH with commas between them; without it data.path alone, which has no task.
// Throws on anything else.
std::vector<MixtureEntry> mixture_entries(const DataConfig& config);

}  // namespace cadre
