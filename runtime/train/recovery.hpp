// SPDX-License-Identifier: Apache-2.0
// A run that outlives some of its ranks, where the launcher lets it (mpirun --enable-recovery). The ranks that are left agree
// by liveness on who that is, leave what was under way where it is, make a world of their own, and do again what
// the run does at its start: experts are spread over fewer ranks, and all go on from the last checkpoint.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "comm/group/communicator.hpp"
#include "comm/transport/mpi.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

class Watchdog;

// Recovery status, shared by the trainer and the watchdog.
class Recovery {
 public:
  explicit Recovery(Watchdog& watchdog) : watchdog_(watchdog) {}

  int num_lost() const { return num_lost_; }  // ranks so far
  // What became of the last ones, for the log; empty before any died.
  const std::string& story() const { return story_; }
  // To be called once the run stands again: from here on its own deadlines watch over it. Seconds since the death was
  // noticed here.
  double stands();

 private:
  friend void run_on_survivors(MpiSession& mpi, JobContext& job,
                               const std::function<void(Communicator, Recovery&)>& body);
  Watchdog& watchdog_;
  int num_lost_ = 0;
  std::string story_;
  std::chrono::steady_clock::time_point noticed_;
};

// Throws where this job cannot survive a death: the launcher would end it, or ranks cannot reach each other beside MPI.
void check_recovery(const RunConfig& config, int num_ranks, const JobContext& job);

// Runs `body` with the world of the job; when ranks die, once more with that of those that are left, and so on.
// Collective. Where these cannot go on, throws ErrorKind::restart; where one of them hangs, ends the whole job with that
// code.
void run_on_survivors(MpiSession& mpi, JobContext& job, const std::function<void(Communicator, Recovery&)>& body);

// The configuration of a run that goes on with fewer ranks: expert-parallel groups that do not fit any more, and a placement
// for another number of ranks, give way to the default. `saved`: this job has saved, so that it goes on from what is
// there whatever checkpoint.resume said of its start.
RunConfig config_of_survivors(const RunConfig& config, int num_ranks, bool saved);

}  // namespace cadre
