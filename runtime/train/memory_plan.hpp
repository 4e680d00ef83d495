// SPDX-License-Identifier: Apache-2.0
// The memory of a rank, known before it is allocated: one training step is run with the null back end over a dry arena
// and a dry exchange, so the plan is what the code does and not a second description of it. The rank is
// planned as the busiest one of an uneven routing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/group/topology.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

struct MemoryLine {
  std::string what;
  size_t bytes;
};

struct MemoryPlan {
  std::vector<MemoryLine> lines;
  int num_lanes = 1;      // micro-batches whose activations are held at once
  int num_works = 0;      // of them, those at work at once, where they take turns with memory for that
  size_t lane_bytes = 0;  // activations that each holds
  size_t work_bytes = 0;  // and that each at work needs beside them

  size_t total_bytes() const;
  size_t activation_bytes() const {
    return static_cast<size_t>(num_lanes) * lane_bytes + static_cast<size_t>(num_works) * work_bytes;
  }
  std::string table() const;  // one line each and the total, in MiB
  std::string line() const;   // the total and its largest parts, without a line end
};

// Of rank `rank` of a job laid out like that. Needs neither MPI nor the memory. `ranks_of_process` threads share what BLAS and
// MPI take.
MemoryPlan plan_memory(const RunConfig& config, const Topology& topology, int rank, int ranks_of_process = 1);

// Sequences of one forward pass on the rank that has most of them; `data` ranks share a micro-batch.
int64_t largest_batch(const RunConfig& config, int data);

// Throws ErrorKind::input when a [from_step.N] section changes the name or the shape of a weight. Allocates nothing.
void check_stage_shapes(const RunConfig& config);

// A worker that trains as the configuration says. Collective over `world`.
WorkerOptions training_options(const RunConfig& config, const Communicator& world);

}  // namespace cadre
