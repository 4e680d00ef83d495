// SPDX-License-Identifier: Apache-2.0
// The folder that a run writes into: one run at a time, and none over a finished one of another configuration.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "comm/group/communicator.hpp"
#include "runtime/checkpoint/run_lock.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// A name for this job. Collective over `world`; the same on all ranks.
std::string name_run(const Communicator& world);

class FolderClaim {
 public:
  // Collective over `world`. Rank 0 takes the lock of config.out for as long as this lives. Throws ErrorKind::input on all
  // ranks when another run holds it, or when the folder holds a finished run of as many steps and another configuration.
  // `run` as for RunLock.
  FolderClaim(const Communicator& world, const RunConfig& config, const std::string& run);

  // Whether the folder holds this very run, finished; rank 0 has said so.
  bool is_finished() const { return is_finished_; }

 private:
  std::unique_ptr<RunLock> lock_;  // on rank 0
  bool is_finished_ = false;
};

// The model below the adapters of a run, which is worth as much as they are: without it they mean nothing. Where train.init is a
// checkpoint of a run, that run may go on and prune it. OUT/base keeps its files then, as hard links, which take no space while
// the checkpoint is there; not the state of its optimiser.

// The directory to name in adapter_config.json, absolute, for programs that start anywhere: OUT/base, or what train.init means.
std::filesystem::path base_of_adapters(const RunConfig& config);

// `config` with OUT/base in train.init, where there is one: that of a run which goes on.
RunConfig on_kept_base(RunConfig config);

// For rank 0 of a run that begins; replaces what a former run kept there. Returns what to tell about it: "" where no run can
// prune train.init. Where files cannot be linked, as on another file system, that says so.
std::string keep_base(const RunConfig& config);

}  // namespace cadre
