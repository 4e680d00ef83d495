// SPDX-License-Identifier: Apache-2.0
// SIGINT, SIGUSR1, SIGUSR2 and SIGTERM ask a run to save and to stop: a time limit that comes near, a preemption, a user. They
// may reach some ranks only, and each at another moment; so a rank never acts on its own flag but on what all agree on.
// SIGCONT, which Slurm sends along, does nothing.
#pragma once

#include <array>
#include <csignal>
#include <cstdint>

#include "comm/base/buffer.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// While one lives, these signals set the flag instead of ending the process. One a process; not for threads to share. `cadre
// train` makes it before anything else, so that a run that gets a signal while it starts saves after its first step and stops.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();  // as it was before; the flag is down
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

 private:
  std::array<struct sigaction, 4> before_{};
};

// Whether this process was asked to stop.
bool stop_requested();

// Whether any rank was asked, for loops that have no reduction of their own to carry the flag.
// Move-only.
class StopVote {
 public:
  // Collective over `world`: takes the flag of this rank along.
  explicit StopVote(const Communicator& world);

  Request& request() { return any_.request(); }
  // Once, after the request is complete; the same on all ranks.
  bool stops() { return any_.take() > 0; }

 private:
  Pending<int32_t> any_;
};

}  // namespace cadre
