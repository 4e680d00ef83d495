// SPDX-License-Identifier: Apache-2.0
// Whether and where experts should move while a run trains: plain values and pure functions of counted loads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/placement/expert_slots.hpp"

namespace cadre {

// Moving mean of the slots of each expert: the mean of all steps up to kLoadWindow, from then on
// m += (counts - m) / kLoadWindow.
inline constexpr int64_t kLoadWindow = 16;

class LoadMean {
 public:
  void add(const std::vector<std::vector<int64_t>>& counts);  // [layers][E], of a step
  int64_t steps() const { return steps_; }
  const std::vector<std::vector<double>>& of_layers() const { return mean_; }  // [layers][E]

 private:
  int64_t steps_ = 0;
  std::vector<std::vector<double>> mean_;
};

// The experts of each rank as slots, each once, ranks in order.
ExpertSlots slots_of(const ExpertMap& map);

// Whether place_anew() can work with a map: its ranks hold as many experts as even_parts() gives, in any order.
bool has_even_slots(const ExpertMap& map);

// The map that the policy `cadre` proposes under these loads [E], with as many experts on each rank as before, each at most
// once; the map of before where no other is better. Slots that the policy leaves empty, or gives a second copy of one
// expert, get the expert that makes the busiest rank least busy, of equal ones one that is there. `groups` and `nodes` are
// those of PlacementSizes. Needs has_even_slots().
ExpertMap place_anew(const ExpertMap& before, std::span<const double> weight, int groups, int nodes);

// The layers that rank `planner` of `planners` plans, as the experts of the ranks of each layer, `before` and `weight` by layer;
// of layers that others plan zeros, so that the sum over all planners is the whole.
std::vector<int64_t> plan_some_layers(const std::vector<ExpertMap>& before,
                                      const std::vector<std::vector<double>>& weight, int groups, int nodes,
                                      int planner, int planners);
// The maps of that sum.
std::vector<ExpertMap> maps_of_plan(const std::vector<ExpertMap>& before, std::span<const int64_t> experts);

// Expected load of the busiest rank / mean, where layers wait for each other: sum of the largest over sum of the means.
double busiest_over_mean(const std::vector<ExpertMap>& maps, const std::vector<std::vector<double>>& weight);

// Experts that ranks of `after` hold and the same ranks of `before` do not, by rank.
std::vector<int> arrivals(const ExpertMap& before, const ExpertMap& after);

// Of the layers of `after` those that lower the load of the busiest rank most, in this order, as long as no rank gets more than
// `most` experts in all, the first in any case; the others as before. weight [layers][E].
std::vector<ExpertMap> within_arrivals(const std::vector<ExpertMap>& before, const std::vector<ExpertMap>& after,
                                       const std::vector<std::vector<double>>& weight, int64_t most);

// What a move would bring and cost.
struct MoveEstimate {
  double step_ms = 0.0;       // of a step as it is
  double expert_share = 0.0;  // of its computation when ranks are even, that of routed experts
  double before = 1.0;        // busiest / mean
  double after = 1.0;
  double copy_ms = 0.0;      // at the switch, when all wait
  double transfer_ms = 0.0;  // behind the passes of the step
  double gain_factor = 1.0;  // of what such estimates promised, what was got: MoveHistory
  double cost_factor = 1.0;
  int64_t horizon = 0;  // steps over which it must pay

  // Of a step, whose experts wait for the busiest rank: T (s before + 1 - s) = step_ms, gain = T s (before - after).
  double plain_gain_ms() const;
  double gain_ms() const { return gain_factor * plain_gain_ms(); }
  // The switch; and a quarter of the transfer, as the cores that compute carry it, or what does not fit behind the step.
  double plain_cost_ms() const { return copy_ms + std::max(0.25 * transfer_ms, transfer_ms - step_ms); }
  double cost_ms() const { return cost_factor * plain_cost_ms(); }
  bool pays() const { return gain_ms() * static_cast<double>(horizon) > cost_ms(); }
};

// How plain estimates of moves compare with what was measured: sums of both, in which a small move that chance hides says little
// and older moves count ever less. 5 % of a step are taken to have been estimated right.
class MoveHistory {
 public:
  double gain_factor() const { return gain_.factor(); }
  double cost_factor() const { return cost_.factor(); }
  void add_gain(double expected_ms, double got_ms, double step_ms) { gain_.add(expected_ms, got_ms, step_ms); }
  void add_cost(double expected_ms, double took_ms, double step_ms) { cost_.add(expected_ms, took_ms, step_ms); }

 private:
  class Sums {
   public:
    double factor() const;  // in [1/8, 8]
    void add(double expected_ms, double measured_ms, double step_ms);

   private:
    double expected_ms_ = 0.0;
    double measured_ms_ = 0.0;
    double prior_ms_ = 0.0;
  };

  Sums gain_;
  Sums cost_;
};

// When a run looks whether to move. every > 0: after each `every` steps. Automatic: kFirstLook steps after its begin or
// after a move, then after twice as many steps, and so on up to kLongestWait.
class RebalanceClock {
 public:
  static constexpr int64_t kFirstLook = 4;
  static constexpr int64_t kLongestWait = 256;

  explicit RebalanceClock(int64_t every) : every_(every), wait_(every > 0 ? every : kFirstLook) {}

  bool tick();        // after a step: whether to look now
  void has_looked();  // and did not move
  void has_moved();
  // Over which a move must pay: until the next look; automatic: as many as the loads have been watched since the last move.
  int64_t horizon() const { return every_ > 0 ? every_ : steps_; }
  int64_t steps() const { return steps_; }  // since the last move or the begin

 private:
  int64_t every_;
  int64_t wait_;  // from the last look to the next
  int64_t waited_ = 0;
  int64_t steps_ = 0;
};

}  // namespace cadre
