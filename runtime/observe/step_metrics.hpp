// SPDX-License-Identifier: Apache-2.0
// What a step was like over all ranks, in one reduction: every rank puts its numbers into one vector of doubles, a
// nonblocking all_reduce adds them while the backward pass runs, and each rank reads the same totals.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// How even a load is. All zero: zeros, and every entry is dead.
struct BalanceFigures {
  double cv = 0.0;       // standard deviation / mean (population)
  double max_vio = 0.0;  // max / mean - 1 (Wang et al. 2024, arXiv 2408.15664)
  int64_t min = 0;
  int64_t max = 0;
  double mean = 0.0;
  double entropy = 0.0;  // of the shares, divided by log(n): 1 is even, 0 is all on one
  int64_t dead = 0;      // entries without load
};
BalanceFigures balance_figures(std::span<const int64_t> load);

// One rank's share of a step.
struct LocalStep {
  double loss_sum = 0.0;      // over this rank's tokens
  double balance_loss = 0.0;  // this rank's share, all layers
  double mtp_loss_sum = 0.0;  // of the MTP modules, as loss_sum
  int64_t num_tokens = 0;
  double loss_weight = 0.0;                         // of their targets; num_tokens where all count
  int64_t slots_planned = 0;                        // routed by this rank's tokens, masked ones not counted
  std::vector<int64_t> slots_received;              // [mixture layers] computed by this rank's experts
  std::vector<int64_t> slots_dropped;               // [mixture layers] of this rank's tokens
  int64_t rerouted = 0;                             // tokens whose best expert is dead, over the layers
  int64_t crossing_bytes = 0;                       // sent to other ranks by dispatch and combine, forward
  int64_t between_hosts_bytes = 0;                  // of them, those to other hosts
  std::vector<std::vector<int64_t>> expert_counts;  // [mixture layers][E], by this rank's tokens; one E for all layers
  double last_step_ms = 0.0;  // of the step before: this one is not over when the reduction starts
  double last_wait_ms = 0.0;
  bool stop_requested = false;

  // Adds what further micro-batches were like.
  LocalStep& operator+=(const LocalStep& other);
};

// The same over all ranks.
struct GlobalStep {
  double loss = 0.0;  // mean over targets, without the balance loss; 0 when there was none
  double balance_loss = 0.0;
  double mtp_loss = 0.0;  // of the MTP modules: sum / loss_weight, without their factor; 0 without any
  int64_t num_tokens = 0;
  double loss_weight = 0.0;
  int64_t slots_planned = 0;
  int64_t slots_received = 0;
  int64_t slots_dropped = 0;
  int64_t rerouted = 0;
  int64_t crossing_bytes = 0;
  int64_t between_hosts_bytes = 0;
  std::vector<std::vector<int64_t>> expert_counts;       // [mixture layers][E]
  std::vector<int64_t> layer_dropped;                    // [mixture layers]
  std::vector<std::vector<int64_t>> layer_device_slots;  // [mixture layers][ranks] slots computed by each rank
  std::vector<int64_t> device_slots;                     // [ranks] the same, all layers
  std::vector<int64_t> device_bytes;                     // [ranks] of crossing_bytes
  std::vector<double> device_step_ms;                    // [ranks] of the step before
  std::vector<double> device_wait_ms;
  bool stop_requested = false;  // on any rank

  double drop_rate() const;  // dropped / (planned + dropped)
  double drop_rate(size_t layer) const;
  // Over the experts of all layers together; the entropy is the mean over layers.
  BalanceFigures expert_balance() const;
};

// The reduction under way. Move-only.
class StepReduction {
 public:
  // Collective over `world`: all ranks have the same layers and experts.
  StepReduction(const Communicator& world, const LocalStep& local);

  Request& request() { return sums_.request(); }
  // Once, after the request is complete. Throws ErrorKind::internal, on all ranks, when the law of conservation is
  // broken: slots planned = slots received = sum of the expert counts.
  GlobalStep finish();

 private:
  size_t num_ranks_;
  size_t num_layers_;
  size_t num_experts_;
  Pending<std::vector<double>> sums_;
};

// Watches over a run whether experts and ranks are used evenly and whether slots are dropped, and says which option to
// change: as soon as a window of steps is beyond a limit, and at the end for the whole run.
class BalanceAlarm {
 public:
  // Means over the steps of a window or a run. MaxVio 1: the busiest expert of a step has twice the mean load.
  static constexpr double kMaxVioLimit = 1.0;
  static constexpr double kDeadExpertsLimit = 1.0;
  static constexpr double kDeviceLimit = 1.5;  // max / mean over the ranks
  static constexpr double kDropRateLimit = 0.01;
  // Steps of a window. After an alarm of one kind, the same is silent for kQuietWindows.
  static constexpr int64_t kWindow = 50;
  static constexpr int64_t kQuietWindows = 10;

  // Lines to be shown now: none but where a window ends. `step` counts from 1.
  std::vector<std::string> add(int64_t step, const GlobalStep& global);
  // Of the whole run: "NOTE: ..." in one line; empty while the means over experts are within their limits.
  std::string note() const;

 private:
  struct Means {
    int64_t steps = 0;
    double max_vio = 0.0;  // sums until `steps` divides them
    double dead = 0.0;
    double device_max_over_mean = 0.0;
    double drop_rate = 0.0;

    void add(const GlobalStep& global);
    double mean(double sum) const { return sum / static_cast<double>(steps); }
  };

  Means run_;
  Means window_;
  int64_t windows_ = 0;
  int64_t quiet_until_[3] = {0, 0, 0};  // windows; of experts, ranks, drops
};

}  // namespace cadre
