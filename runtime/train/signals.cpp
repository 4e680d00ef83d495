// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/signals.hpp"

#include <atomic>
#include <span>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr std::array kStopSignals = {SIGINT, SIGUSR1, SIGUSR2, SIGTERM};

// A handler may touch nothing but what is lock-free.
std::atomic<bool> g_stop_requested = false;
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void request_stop(int /*signal*/) { g_stop_requested.store(true); }

}  // namespace

StopSignals::StopSignals() {
  struct sigaction action = {};
  action.sa_handler = request_stop;
  // A file that is being written is written to its end. Products of oneDNN 2.6 do not survive a handler on their own stack: what
  // they keep below its end is overwritten, and they then write to wrong addresses. main() gives the thread another stack.
  const int flags = SA_RESTART | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kStopSignals.size(); ++i) {
    // A second Ctrl-C ends the process.
    action.sa_flags = kStopSignals[i] == SIGINT ? flags | static_cast<int>(SA_RESETHAND) : flags;
    CADRE_CHECK(sigaction(kStopSignals[i], &action, &before_[i]) == 0,
                fmt::format("signal {} cannot be handled", kStopSignals[i]));
  }
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < kStopSignals.size(); ++i) static_cast<void>(sigaction(kStopSignals[i], &before_[i], nullptr));
  g_stop_requested.store(false);
}

bool stop_requested() { return g_stop_requested.load(); }

StopVote::StopVote(const Communicator& world)
    : any_(world.all_reduce(int32_t{stop_requested() ? 1 : 0}, ReduceOp::max)) {}

}  // namespace cadre
