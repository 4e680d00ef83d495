// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/balance_alarm.hpp"

#include <fmt/format.h>

#include <utility>

namespace cadre {
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
