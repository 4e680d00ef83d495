// SPDX-License-Identifier: Apache-2.0
// Run files: TOML and key=value to a RunConfig and back, all from the one table of fields.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/config/run_config.hpp"

namespace cadre {

// Reads a run file, then the overrides ("train.steps=100"; steps, data stand for train.steps, data.path). An unknown
// key, a wrong type or a value out of range is an error that names key, file and line. Later wins: the keys of [model]
// config, then the file, then the overrides. Combinations are left to `check`.
RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides);
// The same from the text of a file; `where` names it in messages.
RunConfig parse_run_config(std::string_view toml, const std::string& where, const std::vector<std::string>& overrides);

// A run file that load_run_config reads back to an equal configuration.
std::string to_toml(const RunConfig& config);

// Every key with its default, what it allows and what it means.
std::string run_config_help();

// The key of a run file that an option of other programs means: "--steps" and "--lr" are train.steps and
// train.learning_rate; empty: none.
std::string key_of_option(std::string_view option);

}  // namespace cadre
