// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/machine.hpp"

#include <fmt/format.h>

#include <fstream>
#include <set>

#include "comm/progress/progress_thread.hpp"

namespace cadre {

std::string machine_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<int> cores_of_process() {
  std::set<int> cores;
  for (const int cpu : cpus_of_process()) {
    // The list begins with the lowest number.
    std::ifstream siblings(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    int first = cpu;
    cores.insert(siblings >> first ? first : cpu);
  }
  return {cores.begin(), cores.end()};
}

}  // namespace cadre
