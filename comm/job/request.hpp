// SPDX-License-Identifier: Apache-2.0
// A communication under way. Move-only; owns what the transport needs until the operation is complete.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/trace.hpp"

namespace cadre {

class JobContext;

// What a transport keeps for one operation.
class PendingOperation {
 public:
  virtual ~PendingOperation() = default;
  // Drives the operation a step; true once it is complete. Never blocks.
  virtual bool test() = 0;
  // Who is still missing, e.g. "rank 3 (expected 4096 bytes, received none)".
  virtual std::string missing() const = 0;
  // Called when its Request is destroyed before completion: the operation is kept, and never tested again.
  virtual void abandon() noexcept {}
  // Whether a peer or a library may write into the memory of an abandoned operation after the job's context has ended.
  virtual bool outlives_job() const { return true; }
};

class [[nodiscard]] Request {
 public:
  Request() = default;  // complete from the start
  // An operation of `job`, which outlives the Request. `what` names operation, group and rank: "all_reduce of 12 f64 on 'data' (rank 1 of 4)". `bytes` go to other ranks.
  // The trace shows it as part of what the posting thread was at.
  Request(JobContext& job, std::string what, std::unique_ptr<PendingOperation> operation, int64_t bytes = 0);
  // One that no job's liveness can end: a device of this process.
  Request(std::string what, std::unique_ptr<PendingOperation> operation);
  Request(Request&&) noexcept = default;
  Request& operator=(Request&& other) noexcept;
  // An operation that is still under way is abandoned: the job keeps it and the memory it owns, because a peer may yet write
  // into it.
  ~Request();

  // True once complete.
  bool test();
  bool done() const { return operation_ == nullptr; }

  JobContext* job() const { return job_; }  // nullptr: complete from the start, or of no job
  const std::string& what() const { return what_; }
  std::string missing() const { return done() ? "no rank" : operation_->missing(); }

  // It is part of an operation that shows in the trace for all of its parts.
  void hide() { flight_ = {}; }

  // What owns memory that the operation reads or writes; it is held until the operation is complete.
  void keep(std::shared_ptr<const void> owner) {
    if (!done()) owners_.push_back(std::move(owner));
  }

 private:
  friend Request all_of(std::vector<Request> requests);
  void abandon() noexcept;

  JobContext* job_ = nullptr;
  std::string what_;
  std::unique_ptr<PendingOperation> operation_;
  std::vector<std::shared_ptr<const void>> owners_;
  TraceEvent flight_ = {};
};

// Complete when all of them are.
Request all_of(std::vector<Request> requests);

}  // namespace cadre
