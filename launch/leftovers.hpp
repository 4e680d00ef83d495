// SPDX-License-Identifier: Apache-2.0
// Shared memory that a killed job left on a host.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cadre {

// Open MPI keeps a segment of shared memory for each rank under a name in /dev/shm, and removes it at the end; when mpirun
// itself is killed, it stays.

// Marks the segments in `folder` that this process maps, and holds a shared lock on each until the process ends. Call it on
// every rank of a job, once its ranks of a host have exchanged messages. Containers and PID namespaces that share /dev/shm
// do not see each other's processes, but they see the locks.
void hold_segments(const std::filesystem::path& folder = "/dev/shm");

// Removes the segments of this user in `folder` whose job is known to be dead: they have the mark of hold_segments and no lock
// is left, no process that can be seen maps them, and they are older than `age_seconds`, the time in which a job that starts
// maps its own. Returns their names. Segments of other programs have no mark, and stay.
std::vector<std::string> remove_stale_segments(const std::filesystem::path& folder = "/dev/shm",
                                               double age_seconds = 10.0);

}  // namespace cadre
