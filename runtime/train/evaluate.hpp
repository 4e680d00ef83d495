// SPDX-License-Identifier: Apache-2.0
// Held-out loss and how evenly the experts were used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "comm/group/communicator.hpp"
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

// Early stopping: the evaluation of lowest loss, kept in out/best.json over the jobs of a run, and whether the run has been
// without a lower one for too long.

inline constexpr const char* kBestFile = "best.json";

class BestEvaluation {
 public:
  // Collective over `world`. Takes what rank 0 finds in the folder, unless that is of a step after `steps_done`, which the run
  // has gone back behind. `patience` evaluations, every `eval_every` steps, may pass without a lower loss; 0: any number.
  BestEvaluation(const Communicator& world, std::filesystem::path folder, int64_t steps_done, int64_t patience,
                 int64_t eval_every);

  // The loss after `step` steps; the same on all ranks. True: it is the lowest so far, or that of the same step once more.
  bool add(int64_t step, double loss);
  // Writes the file. For rank 0, once the checkpoint of that step stands.
  void write() const;
  bool is_over(int64_t step) const;

  int64_t step() const { return step_; }  // of the lowest loss; 0: none yet
  double loss() const { return loss_; }

 private:
  std::filesystem::path folder_;
  int64_t patience_;
  int64_t eval_every_;
  int64_t step_ = 0;
  double loss_ = 0.0;
};

}  // namespace cadre
