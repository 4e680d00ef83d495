// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"

namespace cadre {

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

}  // namespace cadre
