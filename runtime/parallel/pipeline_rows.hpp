// SPDX-License-Identifier: Apache-2.0
// The rows that stages of a pipeline pass on to each other in one step: activations on the way down, gradients on the way
// back, as messages to another rank or as copies on the same one.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "comm/base/buffer.hpp"
#include "runtime/parallel/executor.hpp"

namespace cadre {

class PipelineRows {
 public:
  // All arguments outlive this object. The rank of the program is the worker's row.
  PipelineRows(Worker& worker, const Program& program, const StepWork& work)
      : worker_(worker), program_(program), work_(work) {}

  void post_receive(const Op& op);
  void post_send(const Op& op);
  // Keeps the rows [T,H] that `done` made for the work that follows it; nothing where none follows.
  void hand_on(Work done, const Tensor& rows);
  // The rows [num_tokens, H] that feed `work`, once they are here; `kept` gets their memory.
  Task<Tensor> take(Work work, Lane& lane, int64_t num_tokens, Buffer& kept);
  // Waits for all sends.
  void finish();

 private:
  struct Rows {
    Buffer memory;
    Request arrived;
  };

  size_t bytes_of(int micro_batch) const;

  Worker& worker_;
  const Program& program_;
  const StepWork& work_;
  std::map<int, Rows> rows_;  // by index_of the work they feed
  std::vector<Request> sends_;
};

}  // namespace cadre
