// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/balance_alarm.hpp"

#include <fmt/format.h>

namespace cadre {

void BalanceAlarm::add(const GlobalStep& step) {
  const BalanceFigures experts = step.expert_balance();
  ++num_steps_;
  max_vio_sum_ += experts.max_vio;
  dead_sum_ += experts.dead;
}

std::string BalanceAlarm::note() const {
  if (num_steps_ == 0) return "";
  const double max_vio = max_vio_sum_ / static_cast<double>(num_steps_);
  const double dead = static_cast<double>(dead_sum_) / static_cast<double>(num_steps_);
  if (max_vio <= kMaxVioLimit && dead <= kDeadExpertsLimit) return "";
  return fmt::format(
      "NOTE: experts were used unevenly: over {} steps the average maxvio was {:.2f} (limit {:.2f}), and {:.1f} "
      "experts "
      "a step had no token (limit {:.1f}); raise model.aux_loss_alpha, or model.bias_update_rate when "
      "model.topk_method = noaux_tc",
      num_steps_, max_vio, kMaxVioLimit, dead, kDeadExpertsLimit);
}

}  // namespace cadre
