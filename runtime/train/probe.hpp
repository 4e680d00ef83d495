// SPDX-License-Identifier: Apache-2.0
// A model on one row of ranks that runs single micro-batches of random tokens and measures the time of each phase.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/parallel/micro_batch.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/plan/machine.hpp"

namespace cadre {

// `config` with ranks in one row, without pipeline, and with a batch of which each rank has the tokens of a micro-batch.
RunConfig one_micro_batch_of(const RunConfig& config, int num_ranks);

// Seconds of each phase; "dense ffn" is that of layers without experts.
using PhaseSeconds = std::map<std::string, double>;
double sum_of(const PhaseSeconds& phases);

class Probe {
 public:
  // Collective over `world`, as are the others. Of a configuration of one_micro_batch_of().
  Probe(const Communicator& world, const RunConfig& config);

  Worker& worker() { return worker_; }

  // One micro-batch, forward and backward: what this rank computed.
  PhaseSeconds pass();
  // Medians of each phase over so many passes, behind one that does not count.
  PhaseSeconds median_of_passes(int num_passes);

 private:
  std::string key_of(const Position& at) const;
  MicroBatch drawn_batch();
  Task<void> forward_and_backward(LaneContext& ctx, TokenBatch batch);

  RunConfig config_;
  Worker worker_;
  uint64_t num_drawn_ = 0;
};

// Measures what the ranks of a job do, for the planner: a few layers of the model of a configuration run forward and backward on
// all ranks at once, with their exchanges, and the time of each phase is divided by its work.

// Collective over `world`; the same on all ranks. Products of experts are measured with the rows of a micro-batch of the
// configuration / each of `row_divisors`, the last of which measures everything else. Takes the memory of the layers, and gives it
// back. Throws where the model cannot run on these ranks.
Machine measure_machine(const Communicator& world, const RunConfig& config, const std::vector<int>& row_divisors = {1});

}  // namespace cadre
