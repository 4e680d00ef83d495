// SPDX-License-Identifier: Apache-2.0
// Memory and cores of this process as the kernel counts them, and how much memory the host and control groups allow. Ranks
// that are threads share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cadre {

size_t resident_bytes();
size_t unshared_bytes();  // of the resident ones, those of no file: what no other process can share
size_t peak_resident_bytes();

// How much memory the kernel lets this process have before it ends it: the machine's, and what control groups allow (batch
// systems and containers make them).
inline constexpr double kMiB = 1024.0 * 1024.0;  // bytes

struct MemoryLimit {
  size_t bytes = 0;
  std::string what;  // "this host has", "memory.max of /sys/fs/cgroup/job allows"
  uint64_t id = 0;   // the same for all processes of a host that share the limit
};

// The physical memory first, then every memory control group of this process, version 1 or 2, and those around it that
// allow less, innermost first. `root` is where /proc and the mounted control groups are looked for.
std::vector<MemoryLimit> memory_limits(const std::filesystem::path& root = "/");

// What this process may compute on, for traces: hosts that are namespaces or containers of one machine share its cores.

// The same for all processes of one machine since it started; "" where the system does not tell.
std::string machine_id();

// The cores that this process may use, each by the number of its first cpu, ascending: cpus of one core count once.
std::vector<int> cores_of_process();

}  // namespace cadre
