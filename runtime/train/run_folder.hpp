// SPDX-License-Identifier: Apache-2.0
// The folder that a run writes into: one run at a time, and none over a finished one of another configuration.
#pragma once

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

}  // namespace cadre
