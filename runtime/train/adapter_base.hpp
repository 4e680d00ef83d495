// SPDX-License-Identifier: Apache-2.0
// The model below the adapters of a run, which is worth as much as they are: without it they mean nothing. Where train.init is a
// checkpoint of a run, that run may go on and prune it. OUT/base keeps its files then, as hard links, which take no space while
// the checkpoint is there; not the state of its optimiser.
#pragma once

#include <filesystem>
#include <string>

#include "runtime/config/run_config.hpp"

namespace cadre {

// The directory to name in adapter_config.json, absolute, for programs that start anywhere: OUT/base, or what train.init means.
std::filesystem::path base_of_adapters(const RunConfig& config);

// `config` with OUT/base in train.init, where there is one: that of a run which goes on.
RunConfig on_kept_base(RunConfig config);

// For rank 0 of a run that begins; replaces what a former run kept there. Returns what to tell about it: "" where no run can
// prune train.init. Where files cannot be linked, as on another file system, that says so.
std::string keep_base(const RunConfig& config);

}  // namespace cadre
