// SPDX-License-Identifier: Apache-2.0
// How many tokens of a micro-batch of all ranks an expert takes: C_e = ceil(factor_e T K / E) (GShard, Lepikhin et al. 2021;
// Switch, Fedus et al. 2021), or a number that is given, whatever T. Which slots are left out when more come depends on the tokens of all ranks, not on who holds
// them. A slot that is left out adds nothing: its token keeps the residual stream, its other experts and the shared one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/router/options.hpp"
#include "layers/router/routing.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

inline constexpr double kUtilisationRate = 0.1;

// C_e of an expert of average load `mean` = T K / E with the utilisation that it had.
int64_t dynamic_capacity(int64_t base, double utilisation);

// Buffer `<prefix>.capacity` [E] where the kind is not fixed: utilisation - 1, or l.
class Capacity {
 public:
  Capacity(const std::string& prefix, int num_experts, int top_k, const CapacityOptions& options);

  // Sets ids to -1 where an expert is full. Collective over the lane's data group when there is a limit.
  Task<void> limit(LaneContext& ctx, Routing& routing) const;
  // After a step, with the demand of all its tokens, over all ranks.
  void update(std::span<const int64_t> global_demand);

  bool limits(const LaneContext& ctx) const {
    const Size size = size_of(ctx.training);
    return (size.factor > 0.0 || size.tokens > 0) && !ctx.decoding && !ctx.arena.is_dry_run();
  }
  bool learns() const { return (options_.factor > 0.0 || options_.tokens > 0) && options_.kind != CapacityKind::fixed; }
  void each_parameter(const ParameterVisitor& visit);
  const CapacityOptions& options() const { return options_; }

  // [E] for a micro-batch of `num_tokens` over all ranks, where experts have `tokens`, or else `factor` times the mean.
  std::vector<int64_t> capacities(double factor, int64_t num_tokens, int64_t tokens = 0) const;

 private:
  struct Size {
    double factor;
    int64_t tokens;
  };
  Size size_of(bool training) const {
    return training ? Size{options_.factor, options_.tokens} : Size{options_.eval_factor, options_.eval_tokens};
  }
  std::vector<double> state() const;

  int num_experts_;
  int top_k_;
  CapacityOptions options_;
  Parameter state_;
};

}  // namespace cadre
