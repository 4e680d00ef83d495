// SPDX-License-Identifier: Apache-2.0
// Whether the files and folders that a run names are there, before anything is built.
#pragma once

#include "runtime/config/run_config.hpp"

namespace cadre {

// Data, held-out data and tokenizer can be read, `out` and what lies in it can be written. Throws ErrorKind::input with all
// that is wrong. Writes nothing.
void check_paths(const RunConfig& config);

}  // namespace cadre
