// SPDX-License-Identifier: Apache-2.0
// Re-placement of experts while a model generates: from the slots that routers gave each expert the policy `cadre` proposes a
// map, and between two passes experts move where the passes to come win more than the move takes. Rank 0 decides.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/move_setting.hpp"
#include "runtime/placement/rebalance.hpp"

namespace cadre {

class PassRebalancer {
 public:
  // Collective over the world of the worker, which outlives this object. Looks after each `every` passes; kAutoRebalance: as
  // RebalanceClock.
  PassRebalancer(Worker& worker, int64_t every);

  // Why experts stay; else empty. The same on all ranks.
  const std::string& note() const { return note_; }

  // Between two passes, collective over the world: what the last one took, the slots that routers gave experts in it on this
  // rank, by layer, and how many passes are to come at most.
  void after_pass(double pass_ms, const std::map<int, std::vector<int64_t>>& slots, int64_t passes_left);

  // So far; the same on all ranks, loads and the time only on rank 0.
  struct Moves {
    int64_t times = 0;
    int64_t experts = 0;  // that came to a rank
    int64_t bytes = 0;
    int64_t refused = 0;  // looks that found a better map that did not pay
    double before = 1.0;  // busiest rank / mean that the first move found
    double after = 1.0;   // and that the last one promised
    double ms = 0.0;
  };
  const Moves& moves() const { return moves_; }

 private:
  struct Proposal {
    std::vector<ExpertMap> maps;
    std::vector<int> arrived;  // at each rank
    MoveEstimate estimate;
  };

  std::vector<ExpertMap> propose();
  Proposal weigh(std::vector<ExpertMap> maps, int64_t passes_left) const;
  void move(const Proposal& proposal);

  Worker& worker_;
  std::vector<int> layers_ = moe_layers_of(worker_.model().config());
  std::string note_;
  MoveSetting setting_;
  RebalanceClock clock_;
  double expert_share_;  // of the computation of an even pass
  LoadMean loads_;
  MoveHistory history_;
  std::vector<std::vector<int64_t>> slots_;  // [layers][E] of this rank, since the last look
  std::vector<double> pass_ms_;              // the same
  Optimizer no_optimizer_;                   // values alone travel
  std::optional<Communicator> group_;        // made for the first move
  Moves moves_;
};

// "experts  moved 2 times, 24 in all (3.1 MiB, 0.8 ms); busiest rank / mean 1.52 before, 1.08 after"
std::string describe(const PassRebalancer::Moves& moves);

}  // namespace cadre
