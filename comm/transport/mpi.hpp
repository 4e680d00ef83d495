// SPDX-License-Identifier: Apache-2.0
// The transport over MPI: nonblocking calls of MPI 3.1, polled.
#pragma once

#include <memory>
#include <string>

#include "comm/transport/transport.hpp"

namespace cadre {

// MPI from first use to finalisation. One a process, made in `main`, outlives every MPI transport.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  // Finalises. If an exception is passing through, the job is aborted instead: the peers may wait for us.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  int exceptions_;
};

// All ranks of the job. Collective.
std::unique_ptr<Transport> make_mpi_world();

// Ends every rank of the job with `code`.
[[noreturn]] void abort_mpi_job(int code);

std::string mpi_library_version();  // one line
std::string mpi_thread_level();

}  // namespace cadre
