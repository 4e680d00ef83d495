// SPDX-License-Identifier: Apache-2.0
// What a job that was killed leaves behind on its hosts.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cadre {

// Open MPI keeps a segment of shared memory for each rank under a name in /dev/shm, and takes it away at the end; when
// mpirun itself is killed, nobody does. Removes those of this user in `folder` that no process maps and that are older
// than `age_seconds`, the time in which a job that starts makes and maps its own. Returns their names. Removes nothing
// where it cannot see what all processes of this user map.
std::vector<std::string> remove_stale_segments(const std::filesystem::path& folder = "/dev/shm",
                                               double age_seconds = 10.0);

}  // namespace cadre
