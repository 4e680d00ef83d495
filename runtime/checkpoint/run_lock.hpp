// SPDX-License-Identifier: Apache-2.0
// One run at a time in a folder. The file RUNNING in it says who: process, host, job. Its holder keeps an advisory lock on
// the file (flock, which also NFS carries between hosts and every kernel drops when the process ends) and writes a
// heartbeat into it, for file systems without such locks. A file that a killed run left does not stop the next one:
//   the lock is free on the same machine (boot id)   its process has ended
//   the lock is free, and both jobs are of a series  the launcher of the series saw the job end
//   another machine, or a file system without locks  the heartbeat does not move while it is watched; where the process id
//                                                    can be looked up, whether a process with that start time exists
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "comm/group/communicator.hpp"

namespace cadre {

// What RUNNING says of its holder.
struct LockHolder {
  int64_t pid = 0;
  int64_t parent = 0;      // the launcher, most often
  int64_t start_time = 0;  // of the process, in clock ticks since boot
  std::string boot;        // id of the running kernel: the same on one machine only
  std::string pid_space;   // processes with the same one can look each other up
  std::string host;
  std::string job;     // "Slurm job 12", or "no batch job"
  std::string series;  // jobs of one series follow each other: the requeues of a job, the restarts of a supervisor
  std::string run;     // of all ranks of this job alone
  int64_t beat = 0;

  // "pid 12 on node1 (Slurm job 34)"
  std::string describe() const;
};

struct RunLockTimes {
  std::chrono::milliseconds beat{5'000};          // between heartbeats
  std::chrono::milliseconds watch{21'000};        // for one, of a holder that cannot be looked up
  std::chrono::milliseconds ending{15'000};       // for a holder that is about to end
  std::chrono::milliseconds predecessor{60'000};  // for one of the same series
};

class RunLock {
 public:
  using Say = std::function<void(const std::string& line)>;

  // Not collective: one process. Creates `folder` and takes the lock; throws ErrorKind::input when another run holds it,
  // with its description. `run` is the same for processes that follow each other in one job. `say` gets notes of waiting.
  RunLock(const std::filesystem::path& folder, const std::string& run, const Say& say, const RunLockTimes& times = {});
  // Removes the file.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  void beat_until_stopped(std::chrono::milliseconds period);
  bool is_ours() const;

  std::filesystem::path path_;
  LockHolder me_;
  int descriptor_ = -1;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stops_ = false;
  std::thread heart_;
};

// Who this process is.
LockHolder this_process(const std::string& run);

}  // namespace cadre
