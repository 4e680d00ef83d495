// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/process_memory.hpp"

#include <fstream>
#include <string>

namespace cadre {
namespace {

// The value of a line "VmHWM:   12345 kB"; 0 on a system without /proc.
size_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    size_t kilobytes = 0;
    if (word == key + ":" && status >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

size_t resident_bytes() { return status_bytes("VmRSS"); }

size_t peak_resident_bytes() { return status_bytes("VmHWM"); }

}  // namespace cadre
