// SPDX-License-Identifier: Apache-2.0
#include "comm/job/poll.hpp"

#include <algorithm>
#include <utility>

#include "comm/job/job_context.hpp"

namespace cadre {
namespace {

constexpr int64_t kShortestIntervalNs = 10'000;  // a test of a few requests costs about 1 us
constexpr int64_t kLongestIntervalNs = 2'000'000;
constexpr double kWeightOfNewest = 0.1;

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

void Poller::move_others_on() {
  std::erase_if(watched_,
                [](const Watched& watched) { return watched.kind == Kind::other && watched.request->test(); });
}

void Poller::test_all() {
  for (const Watched& watched : watched_) static_cast<void>(watched.request->test());
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

Watch::Watch(Request& request, Poller::Kind kind)
    : request_(request), poller_(request.job() == nullptr ? nullptr : &request.job()->poller()) {
  if (poller_ != nullptr) poller_->watch(request, kind);
}

Watch::~Watch() {
  if (poller_ != nullptr) poller_->unwatch(request_);
}

}  // namespace cadre
