// SPDX-License-Identifier: Apache-2.0
#include "comm/progress/poll.hpp"

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

constexpr int64_t kShortestIntervalNs = 10'000;  // a test of a few requests costs about 1 us
constexpr int64_t kLongestIntervalNs = 2'000'000;
constexpr double kWeightOfNewest = 0.1;

thread_local Poller* poller_of_thread = nullptr;

}  // namespace

void Poller::watch(Request& request, Kind kind) {
  if (!request.done()) watched_.push_back({&request, trace_clock_ns(), kind});
}

void Poller::unwatch(const Request& request) {
  std::erase_if(watched_, [&](const Watched& watched) {
    if (watched.request != &request) return false;
    if (request.done()) learn(watched, trace_clock_ns());
    return true;
  });
}

void Poller::point() {
  if (watched_.empty() || policy_.polls_per_exchange == 0) return;
  const int64_t begin_ns = trace_clock_ns();
  if (begin_ns - last_ns_ < interval_ns_) return;
  ++count_.polls;
  std::erase_if(watched_, [&](const Watched& watched) {
    if (!watched.request->test()) return false;
    learn(watched, begin_ns);
    return true;
  });
  last_ns_ = trace_clock_ns();
  count_.nanoseconds += last_ns_ - begin_ns;
}

void Poller::learn(const Watched& completed, int64_t now_ns) {
  if (completed.kind == Kind::other) return;
  const auto duration = static_cast<double>(now_ns - completed.since_ns);
  exchange_ns_ += (exchange_ns_ == 0 ? 1.0 : kWeightOfNewest) * (duration - exchange_ns_);
  if (policy_.polls_per_exchange > 0) {
    interval_ns_ = std::clamp(static_cast<int64_t>(exchange_ns_ / policy_.polls_per_exchange), kShortestIntervalNs,
                              kLongestIntervalNs);
  }
  ++count_.exchanges;
}

PollCount Poller::take_count() { return std::exchange(count_, {}); }

Poller* current_poller() { return poller_of_thread; }

PollScope::PollScope(Poller& poller) : previous_(std::exchange(poller_of_thread, &poller)) {}

PollScope::~PollScope() {
  poller_of_thread->unwatch_all();
  poller_of_thread = previous_;
}

}  // namespace cadre
