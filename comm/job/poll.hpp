// SPDX-License-Identifier: Apache-2.0
// Progress inside computation. Most MPI libraries move data only inside calls, so ThreadPool has a point between the parts of
// a kernel, every 50 to 500 us or so, and the poller of the rank then tests the requests under way, not more often than
// pays: about as often as its policy says while an exchange is in flight.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/job/request.hpp"

namespace cadre {

// When to poll.
struct PollPolicy {
  double polls_per_exchange = 30;  // 0: never inside computation
};

struct PollCount {
  int64_t polls = 0;
  int64_t exchanges = 0;  // that were watched to their end
  int64_t nanoseconds = 0;

  double polls_per_exchange() const {
    return exchanges == 0 ? 0.0 : static_cast<double>(polls) / static_cast<double>(exchanges);
  }
};

class Poller {
 public:
  Poller() = default;
  explicit Poller(const PollPolicy& policy) : policy_(policy) {}

  void set_policy(const PollPolicy& policy) { policy_ = policy; }

  // The request is tested at poll points until it is complete or unwatched. It must live that long. How long it takes
  // until then tells how long exchanges take, unless it is something else.
  enum class Kind { exchange, other };
  void watch(Request& request, Kind kind = Kind::exchange);
  void unwatch(const Request& request);
  void unwatch_all() { watched_.clear(); }

  // Tests what is watched if it is time to.
  void point();
  // Tests all that is watched. For the time in which the rank waits within an operation of its own.
  void test_all();
  // Tests the watched requests that are not exchanges. For the time in which the rank waits for an exchange.
  void move_others_on();

  // Since the last call.
  PollCount take_count();
  double interval_us() const { return static_cast<double>(interval_ns_) * 1e-3; }

 private:
  struct Watched {
    Request* request;
    int64_t since_ns;
    Kind kind;
  };
  void learn(const Watched& completed, int64_t now_ns);

  PollPolicy policy_;
  std::vector<Watched> watched_;
  double exchange_ns_ = 0;  // mean of late, newer ones weigh more
  int64_t interval_ns_ = 20'000;
  int64_t last_ns_ = 0;
  PollCount count_;
};

// At the end of a C++ scope the poller watches nothing, however the scope ends.
class PollScope {
 public:
  explicit PollScope(Poller& poller) : poller_(poller) {}
  ~PollScope() { poller_.unwatch_all(); }
  PollScope(const PollScope&) = delete;
  PollScope& operator=(const PollScope&) = delete;

 private:
  Poller& poller_;
};

// The poller of the job watches a request that no coroutine awaits yet, for a C++ scope: for exchanges that overlap with
// computation.
class Watch {
 public:
  explicit Watch(Request& request, Poller::Kind kind = Poller::Kind::exchange);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  Request& request_;
  Poller* poller_;
};

}  // namespace cadre
