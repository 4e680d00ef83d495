// SPDX-License-Identifier: Apache-2.0
// Walks a verified program on the stages of one rank: the only place where micro-batches overlap. The two halves of an
// overlapped op are two lanes that take turns at their waits. Weight gradients run while all lanes wait, or at the latest
// where the program asks for them, always in the order of micro-batches: overlap changes no bit.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "runtime/parallel/step.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre {

// What is done with the micro-batches of one step.
struct StepWork {
  int64_t step = 0;
  uint64_t seed = 0;                       // of the run
  std::function<MicroBatch(int)> read;     // this rank's part of the micro-batch of that number
  std::function<int64_t(int)> num_tokens;  // of it
  double token_scale = 1.0;                // 1 / tokens of the global batch
  std::optional<double> loss_scale = {};   // 1 / weight of its targets; empty: token_scale
  // Called when this rank's last forward pass is over, before the backward pass that follows.
  std::function<void()> forwards_done = {};
  bool reduce_gradients = true;  // as soon as they are complete, bucket by bucket
  // Where gradients are dropped and not reduced: sees those of a pass of a stage before they are.
  std::function<void(Stage& stage, int bucket)> gradients_done = {};
  StageWatch forward_done = {};  // sees each forward pass of a stage before its backward
  bool adapter_dropout = false;  // whether inputs of adapters are left out
};

enum class Overlap {
  on,
  off,  // one op after the other, nothing behind waits: the same numbers, for comparison
};

class Executor {
 public:
  // The rank of the program is the worker's row. Throws when the program cannot be run.
  Executor(Worker& worker, const Program& program);

  const Program& program() const { return program_; }

  // Adds the gradients of all micro-batches, and to `local` what they were like. Collective over the world.
  void run(const StepWork& work, LocalStep& local, Overlap overlap = Overlap::on);

 private:
  Worker& worker_;
  Program program_;
};

}  // namespace cadre
