// SPDX-License-Identifier: Apache-2.0
// Walks a verified program: the only place where micro-batches overlap. The two halves of an overlapped op are two lanes
// that take turns at their waits. Backward passes run in the order of the program, so gradients add up in the order of
// micro-batches and overlap changes no bit.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "runtime/schedule/program.hpp"
#include "runtime/train/step.hpp"

namespace cadre {

// What is done with the micro-batches of one step.
struct StepWork {
  std::function<MicroBatch(int)> read;  // the micro-batch of that number
  double token_scale = 1.0;             // 1 / tokens of the global batch
  std::function<void()> forwards_done;  // called when the last forward pass is over, before the backward that follows
};

// The program of the step that `config` describes.
Program program_of(const RunConfig& config);

class Executor {
 public:
  // `program` is of one rank and one stage. Throws when it cannot be run, or not on the lanes of `worker`.
  Executor(Worker& worker, const Program& program);
  ~Executor();

  // How many lanes a worker needs for the program: as many as micro-batches live at once.
  static int num_lanes(const Program& program);

  // Adds the gradients of all micro-batches, and to `local` what they were like. Collective over the expert-parallel
  // group.
  void run(const StepWork& work, LocalStep& local);

 private:
  struct Live;  // a micro-batch between its forward and the end of its backward

  Live& begin(const StepWork& work, int micro_batch);
  Live& live(int micro_batch);
  void end(int micro_batch);

  Worker& worker_;
  Program program_;
  std::vector<std::unique_ptr<Live>> live_;  // by lane
};

}  // namespace cadre
