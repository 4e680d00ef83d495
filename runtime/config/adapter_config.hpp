// SPDX-License-Identifier: Apache-2.0
// What the section [adapter] of a run file means for a model.
#pragma once

#include "layers/model/adapter.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

inline bool has_adapters(const RunConfig& config) { return config.adapter.rank > 0; }

// Rank 0 where the run has none. Throws ErrorKind::input on targets that the model has not. The format is bf16 while
// adapter.weights = auto is resolved before, by the caller that has opened the files.
AdapterOptions adapter_options(const RunConfig& config);

// Throws on what adapters do not go with.
void check_adapters(const RunConfig& config);

}  // namespace cadre
