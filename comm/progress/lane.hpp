// SPDX-License-Identifier: Apache-2.0
// One micro-batch on its way through the model. Each lane has communicators of its own, so that the order in which
// lanes reach an exchange can never mismatch between ranks.
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

#include "comm/group/communicator.hpp"
#include "comm/job/wait.hpp"

namespace cadre {

class Lane {
 public:
  // `expert`: the ranks that share the experts (dispatch and combine). `data`: all ranks that hold tokens of this step.
  Lane(int id, Communicator expert, Communicator data)
      : id_(id), expert_group_(std::move(expert)), data_group_(std::move(data)) {}

  int id() const { return id_; }
  const Communicator& expert_group() const { return expert_group_; }
  const Communicator& data_group() const { return data_group_; }
  JobContext& job() const { return expert_group_.job(); }
  Tracer& tracer() const { return job().tracer(); }

  Position position;  // where this micro-batch is
  // What this micro-batch does from here on: for messages and the trace. `phase` is a string literal.
  void enter(const char* phase) {
    position.phase = phase;
    tracer().switch_to(position);
  }
  void enter(const char* phase, int layer) {
    position.layer = layer;
    enter(phase);
  }

  // For the engine and the awaiters: the coroutine that goes on when `awaited` is complete.
  struct Suspension {
    Request* awaited = nullptr;
    std::coroutine_handle<> resume;
  };
  Suspension suspension;

 private:
  int id_;
  Communicator expert_group_;
  Communicator data_group_;
};

}  // namespace cadre
