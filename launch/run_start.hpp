// SPDX-License-Identifier: Apache-2.0
// What a run starts from: its run file, the weights and the model that it names, and whether all files and folders are there,
// before anything is built.
#pragma once

#include <string>
#include <vector>

#include "runtime/config/run_config.hpp"

namespace cadre {

// The directory that weights come from defines the model, below what run file and command line say of it, and, instead of
// bytes, the tokenizer.
RunConfig config_of_run(const std::string& run_file, std::vector<std::string> overrides);

// Lines on what the files that a run starts from have and the run does not use, and what it has otherwise.
std::string notes_on_start(const RunConfig& config);

// Data, held-out data and tokenizer can be read, `out` and what lies in it can be written. Throws ErrorKind::input with all
// that is wrong. Writes nothing.
void check_paths(const RunConfig& config);

// Throws where `out` holds a model: a run has a folder of its own.
void check_out_folder(const RunConfig& config);

}  // namespace cadre
