// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/mpi.hpp"

// The second needs the first.
// clang-format off
#include <mpi.h>
#include <mpi-ext.h>
// clang-format on

namespace cadre {

bool mpi_reaches_devices() { return MPIX_Query_cuda_support() == 1; }

}  // namespace cadre
