// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/process_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace cadre {
namespace {

// The value of a line "VmHWM:   12345 kB" of a file of /proc/self; 0 where there is none.
size_t bytes_of(const char* file, const std::string& key) {
  std::ifstream lines(fmt::format("/proc/self/{}", file));
  for (std::string word; lines >> word;) {
    size_t kilobytes = 0;
    if (word == key + ":" && lines >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

size_t resident_bytes() { return bytes_of("status", "VmRSS"); }

size_t unshared_bytes() { return bytes_of("status", "RssAnon"); }

size_t peak_resident_bytes() {
  // Pages of shared memory count in every process that has read them: here only as this process' share.
  const size_t mapped = bytes_of("status", "RssShmem");
  const size_t share = bytes_of("smaps_rollup", "Pss_Shmem");
  return bytes_of("status", "VmHWM") - (share == 0 ? 0 : mapped - std::min(mapped, share));
}

}  // namespace cadre
