// SPDX-License-Identifier: Apache-2.0
// Keys of a run file whose texts have a form of their own, and sections that mean something for a model: [task], train.recompute,
// data.mixture, [adapter].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layers/model/adapter.hpp"
#include "layers/router/eligibility.hpp"
#include "layers/router/lane_context.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// Throws on an unknown task, and on a priority that does not name each task once.
TaskOptions task_options(const TaskConfig& config);
ComplexityTable complexity_table(const TaskConfig& config);

// Of train.recompute. none: nothing. activations: outputs of activation functions. The others these, and mla_up: queries, keys and values of latent
// attention from its latent vectors; attention: attention with its norm; layer, every:N: each layer, or each N-th one, from
// its input on. Throws on another text.
Recompute recompute_of(const TrainConfig& config);

inline constexpr int32_t kNoTask = -1;

struct MixtureEntry {
  int32_t task = kNoTask;  // a TaskType, as a number
  int64_t weight = 1;      // sequences of each round of the sum of all weights
  std::string path;
};

// The entries of data.mixture, TASK:WEIGHT:PATH with commas between them; without it data.path alone, which has no task.
// Throws on anything else.
std::vector<MixtureEntry> mixture_entries(const DataConfig& config);

inline bool has_adapters(const RunConfig& config) { return config.adapter.rank > 0; }

// Rank 0 where the run has none. Throws ErrorKind::input on targets that the model has not. The format is bf16 while
// adapter.weights = auto is resolved before, by the caller that has opened the files.
AdapterOptions adapter_options(const RunConfig& config);

// Throws on what adapters do not go with.
void check_adapters(const RunConfig& config);

}  // namespace cadre
