// SPDX-License-Identifier: Apache-2.0
// A coroutine that belongs to a lane. It starts when it is awaited (or run by the Engine), and suspends the lane, not
// the thread, when it awaits a Request:
//
//   Task<Tensor> forward(Lane& lane, ...) {
//     co_await transfer->finish();                                  // other lanes run meanwhile
//     const double norm2 = co_await lane.data_group().all_reduce(square, ReduceOp::sum);
//     co_return co_await experts(...);
//   }
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "comm/progress/lane.hpp"

namespace cadre {

template <class T = void>
class Task;

namespace detail {

// Suspends the lane until the request is complete.
struct RequestAwaiter {
  Request& request;
  Lane* lane;

  bool await_ready() const { return request.test(); }
  void await_suspend(std::coroutine_handle<> waiting) const { lane->suspension = {&request, waiting}; }
  void await_resume() const {}
};

// The same, and yields the value. Owns the operation.
template <class T>
struct PendingAwaiter {
  Pending<T> pending;
  Lane* lane;

  bool await_ready() { return pending.request().test(); }
  void await_suspend(std::coroutine_handle<> waiting) { lane->suspension = {&pending.request(), waiting}; }
  T await_resume() { return pending.take(); }
};

// Runs an inner task on the lane of the outer one, and goes on when it is done.
template <class T>
struct TaskAwaiter {
  Task<T>& task;

  bool await_ready() const { return false; }
  template <class Promise>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> outer) const {
    return task.enter(outer.promise().lane, outer);
  }
  T await_resume() const { return task.result(); }
};

// The same of a temporary.
template <class T>
struct OwnedTaskAwaiter {
  Task<T> task;

  bool await_ready() const { return false; }
  template <class Promise>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> outer) {
    return task.enter(outer.promise().lane, outer);
  }
  T await_resume() { return task.result(); }
};

class PromiseBase {
 public:
  std::suspend_always initial_suspend() noexcept { return {}; }

  // Resumes the coroutine that awaited this task.
  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> done) const noexcept {
      const std::coroutine_handle<> next = done.promise().continuation;
      return next ? next : std::noop_coroutine();
    }
    void await_resume() const noexcept {}
  };
  FinalAwaiter final_suspend() noexcept { return {}; }

  void unhandled_exception() { exception = std::current_exception(); }

  RequestAwaiter await_transform(Request& request) { return {request, lane}; }
  template <class U>
  PendingAwaiter<U> await_transform(Pending<U>&& pending) {
    return {std::move(pending), lane};
  }
  template <class U>
  TaskAwaiter<U> await_transform(Task<U>& task) {
    return {task};
  }
  template <class U>
  OwnedTaskAwaiter<U> await_transform(Task<U>&& task) {
    return {std::move(task)};
  }

  Lane* lane = nullptr;
  std::coroutine_handle<> continuation;
  std::exception_ptr exception;
};

template <class T>
class Promise : public PromiseBase {
 public:
  Task<T> get_return_object();
  void return_value(T value) { value_ = std::move(value); }
  T take() {
    if (exception) std::rethrow_exception(exception);
    return std::move(*value_);
  }

 private:
  std::optional<T> value_;
};

template <>
class Promise<void> : public PromiseBase {
 public:
  Task<void> get_return_object();
  void return_void() {}
  void take() const {
    if (exception) std::rethrow_exception(exception);
  }
};

}  // namespace detail

template <class T>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // The coroutine to go on with on `lane`; when it is done, `continuation` goes on.
  std::coroutine_handle<> enter(Lane* lane, std::coroutine_handle<> continuation) {
    handle_.promise().lane = lane;
    handle_.promise().continuation = continuation;
    return handle_;
  }

  // For the engine, which runs the outermost task of a lane.
  void start(Lane& lane) { enter(&lane, nullptr).resume(); }
  bool done() const { return handle_.done(); }
  T result() { return handle_.promise().take(); }

 private:
  Handle handle_;
};

namespace detail {

template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}

}  // namespace detail
}  // namespace cadre
