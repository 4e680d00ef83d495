// SPDX-License-Identifier: Apache-2.0
// Re-placement of experts while a run trains (parallel.rebalance). From the mean of the counted loads the policy `cadre`
// proposes a map; rank 0 weighs the time that it saves against the time that moving takes; all ranks move. After the step in which it
// is time to look, the next one gathers what ranks planned and decides, and the one behind it moves (ExpertMove): ranks wait for each
// other only where they do anyway.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/observe/run_log.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/expert_move.hpp"
#include "runtime/parallel/move_setting.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/placement/rebalance.hpp"

namespace cadre {

class Rebalancer {
 public:
  // Collective over the world of the worker: measures the bandwidth between ranks where experts can move. All arguments
  // outlive this object.
  Rebalancer(Worker& worker, const RunConfig& config, Optimizer& optimizer);

  // Why experts stay although parallel.rebalance has them move; else empty.
  const std::string& note() const { return note_; }

  // Where a move is, on this rank.
  enum class MovePhase { travels, switches, over };
  using MoveWatch = std::function<void(MovePhase)>;
  // The next step moves experts to `maps`, which have as many on each rank. Collective over the world, between steps.
  void plan(const ExpertMaps& maps, const StreamOptions& pieces = {}, MoveWatch watch = {});

  // Collective over the world, in each step that may move experts: before its passes, and between the gradient norm and the
  // update, with the steps that are left behind it. Where that moved experts, gradients are those of others from there on.
  void begin_step();
  void end_passes(StepRecord& record, int64_t steps_left);
  // When the update has read the gradients, before anything writes them.
  void end_update() { move_.reset(); }
  // Collective over the world, after each step; `steps_left` are still to come. Puts into the record what was refused.
  void after_step(StepRecord& record, int64_t steps_left);

 private:
  struct Proposal {
    std::vector<ExpertMap> maps;
    MoveEstimate estimate;
    int64_t copies = 0;  // over all ranks
  };
  struct Plan {
    ExpertMaps maps;
    StreamOptions pieces;
    MoveWatch watch;
    Rebalance record;                           // what is known of it
    std::optional<MoveEstimate> estimate = {};  // on rank 0
  };
  // At a better placement.
  struct Look {
    std::vector<int64_t> planned;          // the experts of the ranks of each layer; of layers that others plan 0
    Pending<std::vector<int64_t>> of_all;  // their sum
    bool begun = false;
    std::vector<ExpertMap> best = {};
    std::optional<Proposal> proposal = {};       // rank 0 only
    Pending<std::vector<int64_t>> changes = {};  // of each layer: 1 where it moves
    double ms = 0.0;
  };

  std::string why_not() const;
  void measure();
  double median_step_ms() const;
  std::optional<Proposal> weigh(const std::vector<ExpertMap>& best, int64_t steps_left) const;
  void weigh_move(StepRecord& record);
  void decide(StepRecord& record, int64_t steps_left);
  void conclude(StepRecord& record, int64_t steps_left);
  void switch_experts(StepRecord& record);
  void tell(MovePhase phase) const {
    if (plan_->watch) plan_->watch(phase);
  }

  Worker& worker_;
  Optimizer& optimizer_;
  std::vector<int> layers_ = moe_layers_of(worker_.model().config());
  std::string note_;
  bool works_ = false;
  double expert_share_;  // of the computation of an even step
  MoveSetting setting_;
  MoveHistory history_;
  RebalanceClock clock_;
  LoadMean loads_;
  std::vector<double> step_ms_;  // since the last move
  struct LastMove {
    double step_ms = 0.0;                  // before it
    std::optional<MoveEstimate> estimate;  // on rank 0
  };
  std::optional<Communicator> move_group_;  // made for the first move
  std::optional<Look> look_;                // of the next step, or of this one
  std::optional<Plan> plan_;                // the same
  std::optional<ExpertMove> move_;          // under way
  std::optional<LastMove> last_move_;       // whose gain was not yet measured
};

}  // namespace cadre
