// SPDX-License-Identifier: Apache-2.0
// What a process says when it dies of a mistake: which rank, where in the run, and the stack.
#pragma once

namespace cadre {

// From now on SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT print that and then end the process as they would have. To be
// called after MPI has started, which has handlers of its own.
void report_crashes();

}  // namespace cadre
