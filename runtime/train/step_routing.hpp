// SPDX-License-Identifier: Apache-2.0
// Routing of training steps in files, one a step: train.replay has tokens visit the experts that a file names, log.routing
// writes the experts that they visited.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/parallel/recorded_routing.hpp"
#include "runtime/parallel/step.hpp"

namespace cadre {

class StepRouting {
 public:
  // All arguments outlive this object.
  StepRouting(const RunConfig& config, Worker& worker) : config_(config), worker_(worker) {}

  // Throws unless there is a file to replay for each of the steps first .. last.
  void check_files(int64_t first, int64_t last) const;

  // The passes of a step begin, once more where it is repeated. Reads what is replayed; throws as RecordedRouting.
  void begin(int64_t step);
  // For the micro-batch of that number; nullptr where nothing is replayed.
  Replay* replay_of(int micro_batch) {
    return replays_.empty() ? nullptr : &replays_[static_cast<size_t>(micro_batch)];
  }
  // Sees the forward passes of a step that is recorded; empty where none is.
  StageWatch watch();
  // The step is over. Collective over the world where steps are recorded: rank 0 writes the file.
  void end();

  // Of all steps so far, over all ranks; a line, or "" where nothing is replayed. Collective over the world.
  std::string report() const;

 private:
  SequenceRange range_of(int micro_batch) const;

  const RunConfig& config_;
  Worker& worker_;
  int64_t step_ = 0;
  std::vector<Replay> replays_;  // of the step's micro-batches
  ReplayCounts counts_;
  std::vector<ResultPiece> pieces_;
};

}  // namespace cadre
