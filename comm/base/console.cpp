// SPDX-License-Identifier: Apache-2.0
#include "comm/base/console.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

struct Label {
  std::string_view text;
  std::string_view colour;  // SGR
};

constexpr std::array<Label, 5> kLabels = {{{"warning:", "\x1b[33m"},
                                           {"ALARM:", "\x1b[31m"},
                                           {"note:", "\x1b[36m"},
                                           {"NOTE:", "\x1b[36m"},
                                           {"step", "\x1b[1m"}}};
constexpr std::string_view kReset = "\x1b[0m";
constexpr int kMostParents = 8;  // between a rank and mpirun: shells, debuggers, wrappers

std::string name_of_process(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/comm");
  std::string name;
  std::getline(file, name);
  return name;
}

pid_t parent_of(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("PPid:")) return std::atoi(line.c_str() + std::strlen("PPid:"));
  }
  return 0;
}

// The mpirun above this process on this host; 0 where there is none.
pid_t launcher_process() {
  pid_t process = ::getppid();
  for (int i = 0; i < kMostParents && process > 1; ++i, process = parent_of(process)) {
    const std::string name = name_of_process(process);
    for (const char* launcher : {"mpirun", "mpiexec", "orterun", "prterun", "mpiexec.hydra"}) {
      if (name == launcher) return process;
    }
  }
  return 0;
}

bool is_started_by_mpi() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr;
}

}  // namespace

bool reaches_terminal(int descriptor) {
  if (!is_started_by_mpi()) return ::isatty(descriptor) == 1;
  const pid_t launcher = launcher_process();
  if (launcher == 0) return false;
  std::error_code error;
  const auto end =
      std::filesystem::read_symlink("/proc/" + std::to_string(launcher) + "/fd/" + std::to_string(descriptor), error);
  const std::string path = end.string();
  return !error && (path.starts_with("/dev/pts/") || path.starts_with("/dev/tty") || path == "/dev/console");
}

int terminal_descriptor() {
  if (is_started_by_mpi() && reaches_terminal(STDOUT_FILENO)) return STDOUT_FILENO;
  return reaches_terminal(STDERR_FILENO) ? STDERR_FILENO : -1;
}

std::string highlight(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end == std::string_view::npos ? end : end + 1);
    text.remove_prefix(line.size());
    size_t length = 0;
    for (const Label& label : kLabels) {
      if (!line.starts_with(label.text)) continue;
      length = label.text == "step" ? std::min(line.find(" |"), line.size()) : label.text.size();
      result.append(label.colour).append(line.substr(0, length)).append(kReset);
      break;
    }
    result += line.substr(length);
  }
  return result;
}

// After the first failure the stream keeps its error flag, so there is one warning.
void say(std::string_view text) {
  if (std::ferror(stdout) != 0) return;
  const std::string shown =
      std::getenv("NO_COLOR") == nullptr && reaches_terminal(STDOUT_FILENO) ? highlight(text) : std::string(text);
  errno = 0;
  const bool written = std::fwrite(shown.data(), 1, shown.size(), stdout) == shown.size();
  if (std::fflush(stdout) == 0 && written) return;
  const std::string line =
      fmt::format("cadre: warning: standard output cannot be written: {}; the run goes on, lines are dropped\n",
                  std::strerror(errno));
  static_cast<void>(std::fputs(line.c_str(), stderr));
}

void require_stdout() {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (flushed && std::ferror(stdout) == 0) return;
  throw Error(ErrorKind::environment,
              fmt::format("standard output cannot be written{}",
                          errno == 0 ? std::string() : fmt::format(": {}", std::strerror(errno))),
              "did the reader of a pipe end, or is the disk full?");
}

std::string help_entry(std::string_view name, std::string_view help, size_t name_width) {
  const size_t help_width = 100 - name_width;
  std::string text = fmt::format("  {:<{}}", name, name_width - 2);
  if (name.size() + 3 > name_width) text += fmt::format("\n{:{}}", "", name_width);
  for (bool is_first = true; !help.empty(); is_first = false) {
    size_t end = help.size();
    if (end > help_width) {
      const size_t blank = help.rfind(' ', help_width);
      end = blank == std::string_view::npos || blank == 0 ? std::min(help.find(' '), help.size()) : blank;
    }
    if (!is_first) text += fmt::format("\n{:{}}", "", name_width);
    text += help.substr(0, end);
    help.remove_prefix(std::min(help.find_first_not_of(' ', end), help.size()));
  }
  return text + '\n';
}

}  // namespace cadre
