// SPDX-License-Identifier: Apache-2.0
// A wait in Cadre is: poll, deadline, and a message that says who waits for whom. Where the job has a liveness, a wait also
// ends when a rank has died, and the message says who is late.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"
#include "comm/job/job_context.hpp"
#include "comm/job/request.hpp"

namespace cadre {

// How long one wait may take.
class Deadline {
 public:
  // `job`: whose liveness ends the wait; nullptr: only time does.
  Deadline(const JobContext* job, double seconds)
      : job_(job),
        seconds_(seconds),
        end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds))) {}

  // Throws ErrorKind::lost_rank once a rank died, and ErrorKind::timeout once the time is over. Both name the request and
  // `position`; the first says who died, the second who is missing and where those are that hold this rank up.
  void check(const Request& request, const Position& position) const {
    check(
        position, [&] { return request.what(); }, [&] { return request.missing(); });
  }
  // The same for a wait that is for no request: `what` and `missing` are asked for when it fails.
  void check(const Position& position, const std::function<std::string()>& what,
             const std::function<std::string()>& missing) const;

 private:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  const JobContext* job_;
  double seconds_;
  Clock::time_point end_;
};

// Polls until the request is complete; yields the core between polls. The deadline is the job's where none is given.
void wait(Request& request, std::optional<double> deadline_seconds = {}, const Position& position = {});

// An operation under way and the value that it yields. The operation owns the memory of the value, so one that is given up
// writes into nothing that is gone. Move-only.
template <class T>
class [[nodiscard]] Pending {
 public:
  Pending() : value_(std::make_shared<T>()) {}  // complete from the start
  // `request` reads and writes the memory of `value` only.
  Pending(Request request, std::shared_ptr<T> value) : request_(std::move(request)), value_(std::move(value)) {
    request_.keep(value_);
  }
  Pending(Pending&&) noexcept = default;
  Pending& operator=(Pending&&) noexcept = default;

  Request& request() { return request_; }
  const Request& request() const { return request_; }
  bool done() const { return request_.done(); }
  // After the request is complete.
  const T& value() const {
    check_done();
    return *value_;
  }
  // The same, once.
  T take() {
    check_done();
    return std::move(*value_);
  }

 private:
  void check_done() const {
    if (!request_.done()) throw Error(ErrorKind::internal, "the value of an operation under way was read");
  }

  Request request_;
  std::shared_ptr<T> value_;
};

// Waits as for a Request, and returns the value.
template <class T>
T wait(Pending<T> pending, std::optional<double> deadline_seconds = {}, const Position& position = {}) {
  wait(pending.request(), deadline_seconds, position);
  return pending.take();
}

// Runs `call` and throws what it throws. `what` names it. Throws as a wait does when it takes longer than the deadline of
// the job or a rank dies; then `call` is left behind, maybe forever, so it must own all it touches. In a job without threads
// for calls (JobContext) the caller makes the call itself, and it has no deadline.
void blocking_call(JobContext& job, const std::string& what, std::function<void()> call);

// With a result that the call fills in.
template <class Result>
Result blocking_call(JobContext& job, const std::string& what, std::function<void(Result&)> call) {
  const auto result = std::make_shared<Result>();
  blocking_call(job, what, [result, call = std::move(call)] { call(*result); });
  return std::move(*result);
}

}  // namespace cadre
