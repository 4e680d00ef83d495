// SPDX-License-Identifier: Apache-2.0
// The transport over MPI: nonblocking calls of MPI 3.1, polled.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "comm/transport/transport.hpp"

namespace cadre {

struct MpiProcess;

// MPI from first use to finalisation. One a process, made in `main`; outlives every MPI transport, and the contexts of its
// jobs outlive it.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  // Finalises. If an exception is passing through, the job is aborted instead: the peers may wait for this rank. Where ranks
  // were lost, or threads are left in calls of MPI, the process ends here, with code 0.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // All ranks that the launcher started, as a world of `job`. Collective.
  std::unique_ptr<Transport> make_world(JobContext& job);
  // The ranks that are left, ascending. Collective over them alone; all give the same. What belongs to the worlds before is
  // left as it is from here on, pending operations included.
  std::unique_ptr<Transport> make_survivors(JobContext& job, const std::vector<int>& ranks);

 private:
  void add_job(JobContext& job);

  int exceptions_;
  std::shared_ptr<MpiProcess> process_;
  std::vector<std::shared_ptr<std::atomic<bool>>> left_calls_behind_;  // of each job
};

// Whether the launcher lets a job go on when one of its processes dies.
bool mpi_survives_lost_ranks();

// Ends every rank of the job with `code`; this process alone where MPI was not started.
[[noreturn]] void abort_mpi_job(int code);

// Whether MPI may be handed memory of a CUDA device.
bool mpi_reaches_devices();
std::string mpi_library_version();  // one line
std::string mpi_thread_level();

}  // namespace cadre
