// SPDX-License-Identifier: Apache-2.0
// Early stopping: the evaluation of lowest loss, kept in out/best.json over the jobs of a run, and whether the run has been
// without a lower one for too long.
#pragma once

#include <cstdint>
#include <filesystem>

#include "comm/group/communicator.hpp"

namespace cadre {

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
