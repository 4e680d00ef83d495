// SPDX-License-Identifier: Apache-2.0
// Ranks of a program that initialises and finalises MPI itself.
#pragma once

#include <mpi.h>

#include <functional>
#include <memory>

#include "comm/transport/transport.hpp"

namespace cadre {

struct MpiGroup {
  std::unique_ptr<Transport> transport;
  // From then on what belongs to the transport and its splits is not freed, because that is collective.
  std::function<void()> leave_to_process_end;
};

// A duplicate of `comm`. Collective over it. Throws ErrorKind::input where MPI is not initialised, or `comm` is null or an
// intercommunicator.
MpiGroup make_mpi_group(JobContext& job, MPI_Comm comm);

}  // namespace cadre
