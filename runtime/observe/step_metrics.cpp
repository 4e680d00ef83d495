// SPDX-License-Identifier: Apache-2.0
// The vector that is reduced: sums | expert counts [layers][E] | dropped [layers] | per rank: slots received of each layer,
// bytes, step time, wait time | ranks that are asked to stop. A rank writes its own places of those per rank and zeros
// elsewhere, so that the sum gathers.
// Whole numbers below 2^53 stay exact in a double, in any order of additions.
#include "runtime/observe/step_metrics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

std::vector<double> values_of(const LocalStep& local, size_t rank, size_t num_ranks) {
  std::vector<double> values = {local.loss_sum,
                                local.balance_loss,
                                local.mtp_loss_sum,
                                static_cast<double>(local.num_tokens),
                                local.loss_weight,
                                static_cast<double>(local.slots_planned),
                                static_cast<double>(local.between_hosts_bytes),
                                static_cast<double>(local.rerouted)};
  for (const std::vector<int64_t>& counts : local.expert_counts) {
    CADRE_ASSERT(counts.size() == local.expert_counts.front().size());
    for (const int64_t count : counts) values.push_back(static_cast<double>(count));
  }
  CADRE_ASSERT(local.slots_dropped.size() == local.expert_counts.size());
  CADRE_ASSERT(local.slots_received.size() == local.expert_counts.size());
  values.insert(values.end(), local.slots_dropped.begin(), local.slots_dropped.end());
  std::vector<double> of_rank(local.slots_received.begin(), local.slots_received.end());
  of_rank.insert(of_rank.end(), {static_cast<double>(local.crossing_bytes), local.last_step_ms, local.last_wait_ms});
  for (const double mine : of_rank) {
    const size_t first = values.size();
    values.resize(first + num_ranks, 0.0);
    values[first + rank] = mine;
  }
  values.push_back(local.stop_requested ? 1.0 : 0.0);
  return values;
}

// Takes the totals in the order in which values_of wrote them.
class Totals {
 public:
  explicit Totals(const double* first) : next_(first) {}

  double number() { return *next_++; }
  int64_t integer() { return std::llround(number()); }
  std::vector<double> numbers(size_t count) {
    std::vector<double> result(count);
    for (double& value : result) value = number();
    return result;
  }
  std::vector<int64_t> integers(size_t count) {
    std::vector<int64_t> result(count);
    for (int64_t& value : result) value = integer();
    return result;
  }

 private:
  const double* next_;
};

// Of the sum of both.
double share_of(int64_t part, int64_t rest) {
  return part == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(part + rest);
}

int64_t sum_of(std::span<const int64_t> values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

void check_conservation(const GlobalStep& global) {
  int64_t counted = 0;
  for (const std::vector<int64_t>& counts : global.expert_counts) counted += sum_of(counts);
  if (global.slots_planned == global.slots_received && global.slots_received == counted) return;
  throw Error(ErrorKind::internal,
              fmt::format("token slots are not conserved over the world: {} planned by the senders, {} received by the "
                          "experts, {} counted by the routers; all three must be equal",
                          global.slots_planned, global.slots_received, counted),
              "an exchange lost or doubled rows: please report the case");
}

}  // namespace

BalanceFigures balance_figures(std::span<const int64_t> load) {
  BalanceFigures figures;
  if (load.empty()) return figures;
  const auto [min, max] = std::ranges::minmax(load);
  const auto total = static_cast<double>(sum_of(load));
  const auto num_entries = static_cast<double>(load.size());
  figures.min = min;
  figures.max = max;
  figures.mean = total / num_entries;
  figures.dead = std::ranges::count(load, 0);
  if (max == 0) return figures;

  double squares = 0.0;
  double entropy = 0.0;
  for (const int64_t entry : load) {
    const double deviation = static_cast<double>(entry) - figures.mean;
    const double share = static_cast<double>(entry) / total;
    squares += deviation * deviation;
    if (entry > 0) entropy -= share * std::log(share);
  }
  figures.cv = std::sqrt(squares / num_entries) / figures.mean;
  figures.max_vio = static_cast<double>(max) / figures.mean - 1.0;
  figures.entropy = load.size() == 1 ? 1.0 : entropy / std::log(num_entries);
  return figures;
}

LocalStep& LocalStep::operator+=(const LocalStep& other) {
  const auto add = [](std::vector<int64_t>& to, const std::vector<int64_t>& from) {
    std::ranges::transform(to, from, to.begin(), std::plus{});
  };
  loss_sum += other.loss_sum;
  balance_loss += other.balance_loss;
  mtp_loss_sum += other.mtp_loss_sum;
  num_tokens += other.num_tokens;
  loss_weight += other.loss_weight;
  slots_planned += other.slots_planned;
  add(slots_received, other.slots_received);
  add(slots_dropped, other.slots_dropped);
  rerouted += other.rerouted;
  crossing_bytes += other.crossing_bytes;
  between_hosts_bytes += other.between_hosts_bytes;
  for (size_t layer = 0; layer < expert_counts.size(); ++layer) add(expert_counts[layer], other.expert_counts[layer]);
  return *this;
}

double GlobalStep::drop_rate() const { return share_of(slots_dropped, slots_planned); }

double GlobalStep::drop_rate(size_t layer) const {
  return share_of(layer_dropped[layer], sum_of(expert_counts[layer]));
}

BalanceFigures GlobalStep::expert_balance() const {
  if (expert_counts.empty()) return {};
  std::vector<int64_t> all_layers;
  double entropy_sum = 0.0;
  for (const std::vector<int64_t>& counts : expert_counts) {
    all_layers.insert(all_layers.end(), counts.begin(), counts.end());
    entropy_sum += balance_figures(counts).entropy;
  }
  BalanceFigures figures = balance_figures(all_layers);
  figures.entropy = entropy_sum / static_cast<double>(expert_counts.size());
  return figures;
}

StepReduction::StepReduction(const Communicator& world, const LocalStep& local)
    : num_ranks_(static_cast<size_t>(world.size())),
      num_layers_(local.expert_counts.size()),
      num_experts_(num_layers_ == 0 ? 0 : local.expert_counts.front().size()) {
  sums_ = world.all_reduce(values_of(local, static_cast<size_t>(world.rank()), num_ranks_), ReduceOp::sum);
}

GlobalStep StepReduction::finish() {
  const std::vector<double> sums = sums_.take();
  Totals totals(sums.data());
  GlobalStep global;
  const double loss_sum = totals.number();
  global.balance_loss = totals.number();
  const double mtp_loss_sum = totals.number();
  global.num_tokens = totals.integer();
  global.loss_weight = totals.number();
  global.slots_planned = totals.integer();
  global.between_hosts_bytes = totals.integer();
  global.rerouted = totals.integer();
  for (size_t layer = 0; layer < num_layers_; ++layer) global.expert_counts.push_back(totals.integers(num_experts_));
  global.layer_dropped = totals.integers(num_layers_);
  global.device_slots.assign(num_ranks_, 0);
  for (size_t layer = 0; layer < num_layers_; ++layer) {
    global.layer_device_slots.push_back(totals.integers(num_ranks_));
    for (size_t rank = 0; rank < num_ranks_; ++rank)
      global.device_slots[rank] += global.layer_device_slots[layer][rank];
  }
  global.device_bytes = totals.integers(num_ranks_);
  global.device_step_ms = totals.numbers(num_ranks_);
  global.device_wait_ms = totals.numbers(num_ranks_);
  global.stop_requested = totals.number() > 0.0;

  global.slots_received = sum_of(global.device_slots);
  global.slots_dropped = sum_of(global.layer_dropped);
  global.crossing_bytes = sum_of(global.device_bytes);
  if (global.loss_weight > 0.0) {
    global.loss = loss_sum / global.loss_weight;
    global.mtp_loss = mtp_loss_sum / global.loss_weight;
  }
  check_conservation(global);
  return global;
}

namespace {

constexpr const char* kEvenExperts =
    "raise model.aux_loss_alpha, or model.bias_update_rate when model.topk_method = noaux_tc";

}  // namespace

void BalanceAlarm::Means::add(const GlobalStep& global) {
  const BalanceFigures experts = global.expert_balance();
  ++steps;
  max_vio += experts.max_vio;
  dead += static_cast<double>(experts.dead);
  device_max_over_mean += balance_figures(global.device_slots).max_vio + 1.0;
  drop_rate += global.drop_rate();
}

std::vector<std::string> BalanceAlarm::add(int64_t step, const GlobalStep& global) {
  run_.add(global);
  window_.add(global);
  if (window_.steps < kWindow) return {};
  const Means window = std::exchange(window_, {});
  ++windows_;
  std::vector<std::string> lines;
  const auto check = [&](int kind, double mean, double limit, const std::string& what, const char* option) {
    if (mean <= limit || windows_ <= quiet_until_[kind]) return;
    quiet_until_[kind] = windows_ + kQuietWindows;
    lines.push_back(
        fmt::format("ALARM: steps {} to {}: {} (limit {:.2f}); {}", step - kWindow + 1, step, what, limit, option));
  };
  const double max_vio = window.mean(window.max_vio);
  const double device = window.mean(window.device_max_over_mean);
  const double drop_rate = window.mean(window.drop_rate);
  check(0, max_vio, kMaxVioLimit, fmt::format("experts are used unevenly, average maxvio {:.2f}", max_vio),
        kEvenExperts);
  check(1, device, kDeviceLimit, fmt::format("ranks are loaded unevenly, average max/mean {:.2f}", device),
        "experts that are used together lie on one rank: even out the experts, or use fewer ranks a group "
        "(parallel.expert)");
  check(2, drop_rate, kDropRateLimit, fmt::format("{:.1f} % of the slots were dropped", 100.0 * drop_rate),
        "raise model.capacity_factor, or even out the experts");
  return lines;
}

std::string BalanceAlarm::note() const {
  if (run_.steps == 0) return "";
  const double max_vio = run_.mean(run_.max_vio);
  const double dead = run_.mean(run_.dead);
  if (max_vio <= kMaxVioLimit && dead <= kDeadExpertsLimit) return "";
  return fmt::format(
      "NOTE: experts were used unevenly: over {} steps the average maxvio was {:.2f} (limit {:.2f}), and {:.1f} "
      "experts a step had no token (limit {:.1f}); {}",
      run_.steps, max_vio, kMaxVioLimit, dead, kDeadExpertsLimit, kEvenExperts);
}

}  // namespace cadre
