// SPDX-License-Identifier: Apache-2.0
// Other processes of an Open MPI job on this host, as /proc shows them.
#pragma once

#include <sys/types.h>

namespace cadre {

// Kills a rank that is stopped (SIGSTOP, a debugger). Any other process, and one of another job, stays.
void kill_if_stopped(pid_t pid);

// Has the mpirun that started this process end the whole job, where it is on this host.
void end_mpirun();

}  // namespace cadre
