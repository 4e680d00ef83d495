// SPDX-License-Identifier: Apache-2.0
// The transport over MPI: nonblocking calls of MPI 3.1, polled.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/transport/transport.hpp"

namespace cadre {

// MPI from first use to finalisation. One a process, made in `main`, outlives every MPI transport.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  // Finalises. If an exception is passing through, the job is aborted instead: the peers may wait for us. Where ranks were
  // lost the process ends here, with code 0.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  int exceptions_;
};

// All ranks of the job. Collective.
std::unique_ptr<Transport> make_mpi_world();

// The ranks of the job that are left, ascending. Collective over them alone; all give the same. What belongs to the worlds
// before is left as it is from here on, pending operations included.
std::unique_ptr<Transport> make_mpi_survivors(const std::vector<int>& ranks);
// Whether the launcher lets a job go on when one of its processes dies.
bool mpi_survives_lost_ranks();

// Ends every rank of the job with `code`.
[[noreturn]] void abort_mpi_job(int code);

// Whether MPI may be handed memory of a CUDA device.
bool mpi_reaches_devices();
std::string mpi_library_version();  // one line
std::string mpi_thread_level();

}  // namespace cadre
