// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/job_processes.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <string>

namespace cadre {
namespace {

// One line of /proc/PID/stat: PID (NAME) STATE PARENT ...
struct Process {
  std::string name;
  char state = 0;  // 0: there is no such process
  pid_t parent = 0;
};

Process process(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find('(');
  const size_t end = line.rfind(')');
  if (end == std::string::npos || end + 4 >= line.size()) return {};
  return {line.substr(begin + 1, end - begin - 1), line[end + 2],
          static_cast<pid_t>(std::strtol(line.c_str() + end + 4, nullptr, 10))};
}

// Whether that is a process of this job, and on this host: Open MPI tells each which job it is of.
bool is_here(pid_t pid) {
  constexpr const char* kJob = "PMIX_NAMESPACE";
  const char* const job = std::getenv(kJob);
  if (job == nullptr) return false;
  std::ifstream file(fmt::format("/proc/{}/environ", pid), std::ios::binary);
  for (std::string entry; std::getline(file, entry, '\0');) {
    if (entry == fmt::format("{}={}", kJob, job)) return true;
  }
  return false;
}

}  // namespace

void kill_if_stopped(pid_t pid) {
  if (is_here(pid) && process(pid).state == 'T') kill(pid, SIGKILL);
}

void end_mpirun() {
  for (pid_t pid = getppid(); pid > 1;) {
    const Process found = process(pid);
    if (found.name == "mpirun" || found.name == "mpiexec" || found.name == "orterun") {
      kill(pid, SIGTERM);
      return;
    }
    pid = found.parent;  // a wrapper between
  }
}

}  // namespace cadre
