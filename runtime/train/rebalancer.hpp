// SPDX-License-Identifier: Apache-2.0
// Re-placement of experts while a run trains (parallel.rebalance). From the mean of the counted loads the policy `cadre`
// proposes a map; rank 0 weighs the time that it saves against the time that moving takes; all ranks move at one step boundary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/observe/run_log.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/placement/rebalance.hpp"

namespace cadre {

class Rebalancer {
 public:
  // Collective over the world of the worker: measures the bandwidth between ranks where experts can move. All arguments
  // outlive this object.
  Rebalancer(Worker& worker, const RunConfig& config, const Optimizer& optimizer);

  // Why experts stay although parallel.rebalance has them move; else empty.
  const std::string& note() const { return note_; }

  // Collective over the world, after each step; `steps_left` are still to come. Puts into the record what was proposed and what
  // became of it. May move experts: no gradient is kept.
  void after_step(StepRecord& record, int64_t steps_left);

 private:
  struct Proposal {
    std::vector<ExpertMap> maps;
    MoveEstimate estimate;
    int64_t copies = 0;  // over all ranks
  };

  std::string why_not() const;
  void measure();
  std::vector<ExpertMap> maps_now() const;
  double median_step_ms() const;
  std::optional<Proposal> propose(int64_t steps_left) const;
  std::vector<int64_t> as_message(const std::optional<Proposal>& proposal, bool moves) const;
  ExpertMaps maps_in(const std::vector<int64_t>& message) const;
  void move(const ExpertMaps& maps, StepRecord& record);
  std::vector<NamedTensor> state() const;

  Worker& worker_;
  const Optimizer& optimizer_;
  std::vector<int> layers_ = moe_layers_of(worker_.model().config());
  std::string note_;
  bool works_ = false;
  double expert_share_;  // of the computation of an even step
  int groups_ = 1;
  int nodes_ = 1;
  double seconds_per_byte_ = 0.0;
  int64_t expert_bytes_ = 0;  // of the state of one expert
  RebalanceClock clock_;
  LoadMean loads_;
  std::vector<double> step_ms_;  // since the last move
  struct LastMove {
    double step_ms = 0.0;  // before it
  };
  std::optional<LastMove> last_move_;  // whose gain was not yet measured
};

}  // namespace cadre
