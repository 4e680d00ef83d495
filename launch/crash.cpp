// SPDX-License-Identifier: Apache-2.0
#include "launch/crash.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <string>

#include "comm/base/stack_trace.hpp"
#include "comm/base/trace.hpp"
#include "launch/job.hpp"

namespace cadre {
namespace {

constexpr std::array kCrashes = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
constexpr size_t kStackBytes = size_t{1} << 18;
constexpr unsigned kReportSeconds = 10;

alignas(64) std::array<std::byte, kStackBytes> crash_stack;  // a stack that overflowed is no use
std::string rank_at_start;                                   // nothing may go wrong when it is printed

void say(const std::string& text) {
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) return;  // there is nobody else to tell
}

// Does what a handler must not, and may therefore hang: then the alarm ends it. The handlers are gone by then, so that the
// signal ends the process when it is raised again.
extern "C" void report_crash(int signal) {
  std::signal(SIGALRM, SIG_DFL);
  alarm(kReportSeconds);
  say(fmt::format("cadre: error: {}signal {} ({}): {}\n", rank_at_start, signal, strsignal(signal),
                  position_of_process().describe()));
  say(stack_trace());
  static_cast<void>(raise(signal));
}

}  // namespace

void report_crashes() {
  rank_at_start = rank_of_process();
  stack_t stack{};
  stack.ss_sp = crash_stack.data();
  stack.ss_size = kStackBytes;
  static_cast<void>(sigaltstack(&stack, nullptr));
  struct sigaction action = {};
  action.sa_handler = report_crash;
  action.sa_flags = SA_ONSTACK | static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  for (const int signal : kCrashes) static_cast<void>(sigaction(signal, &action, nullptr));
}

}  // namespace cadre
