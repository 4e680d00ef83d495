// SPDX-License-Identifier: Apache-2.0
// Held-out loss and how evenly the experts were used.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/order.hpp"
#include "runtime/parallel/step.hpp"

namespace cadre {

struct Evaluation {
  double loss = 0.0;  // mean nats a target
  int64_t num_tokens = 0;
  std::vector<std::vector<int64_t>> expert_counts;  // [mixture layers][E]
  bool stop_requested = false;                      // by a signal to any rank
  double loss_weight = 0.0;                         // of the targets; num_tokens where all count
  int64_t rerouted = 0;                             // tokens whose best expert is dead, counted once a layer
};

// Over the first num_batches * train.batch windows of the reader's first epoch, or all of them where they are fewer: each
// window counts once. `labeller` gives tokens their tasks, as in training. Batches are cut in micro-batches as in training. Collective over the world; the same on all ranks and
// for any number of them. Given up once a rank is asked to stop: the loss is NaN then, if batches are left.
Evaluation evaluate(Worker& worker, const BatchReader& reader, const RunConfig& config, int64_t num_batches,
                    const TaskLabeller* labeller = nullptr);

// A micro-batch through those stages of the first route that are on this rank, from rows of the row before to rows of the
// row after; `watch`, if given, sees each stage. Collective over the rows; all arguments must outlive the task.
Task<void> forward_here(Worker& worker, LaneContext& ctx, MicroBatch& micro_batch, int index, LocalStep& local,
                        StageWatch watch = {});

}  // namespace cadre
