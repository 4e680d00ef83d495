// SPDX-License-Identifier: Apache-2.0
// Picks experts for each token and weighs them: the pieces of routing.hpp in a row, and their way back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layers/router/bias.hpp"
#include "layers/router/capacity.hpp"
#include "layers/router/eligibility.hpp"
#include "layers/router/losses.hpp"
#include "layers/router/options.hpp"
#include "layers/router/score.hpp"
#include "layers/router/select.hpp"
#include "layers/router/weights.hpp"

namespace cadre {

class Router {
 public:
  // Parameters and buffers as the pieces name them.
  Router(const std::string& prefix, const RouterOptions& options);

  struct Saved : Routing {
    Scorer::Saved scorer;
    Losses::Saved losses;
    Tensor weighing;           // [T,E], what routing weights are made of: the scores, or what a bias made of them
    int64_t num_rerouted = 0;  // of this rank's tokens, those whose best expert is dead
    bool at_once = false;      // by Kernels::route
  };

  // x [T,H]; everything it finds is in `saved`. May be collective over the lane's data group. Throws ErrorKind::numerics on
  // a logit that is not finite.
  Task<void> forward(LaneContext& ctx, const Tensor& x, Saved& saved) const;

  // In training: starts to add up what the losses need over the data group; and with those sums makes their values.
  Pending<std::vector<double>> start_losses(LaneContext& ctx, Saved& saved) const;
  void finish_losses(LaneContext& ctx, Saved& saved, std::vector<double> sums) const;

  // dweights [T,slots], which is added to, and the losses to dx [T,H].
  Tensor input_grad(LaneContext& ctx, Saved& saved, const Tensor& dweights);
  void weight_grad(Context& ctx, const Saved& saved) { scorer_.weight_grad(ctx, saved.scorer); }
  void each_parameter(const ParameterVisitor& visit);

  int num_slots() const { return selector_->num_slots(); }
  // Leaves experts out, or takes them back, from the next forward pass on; the weights are shared among the living.
  void set_dead(const std::vector<int>& experts);

  // What experts did so far for the tokens of each task, see SelectionBias::history.
  std::vector<std::vector<ExpertHistory>> history() const { return bias_.history(); }

  // Between steps. What this rank counted since the last call, to be added up over all ranks that hold the layer; empty
  // where no piece learns from it.
  std::vector<int64_t> take_statistics();
  // Moves what is not trained by gradient: with those sums, and with the load of the whole global batch.
  void update(std::span<const int64_t> statistics, std::span<const int64_t> global_counts, double bias_rate);

 private:
  std::optional<RouteRule> plain_rule() const;
  bool can_route_at_once(const LaneContext& ctx) const;
  Task<void> route_at_once(LaneContext& ctx, Saved& saved) const;
  void learn(const LaneContext& ctx, const Saved& saved, const Tensor& dweights);
  Tensor choice_of(LaneContext& ctx, const Saved& saved) const;
  Tensor weighing_of(LaneContext& ctx, const Saved& saved) const;

  RouterOptions options_;
  Scorer scorer_;
  SelectionBias bias_;
  std::unique_ptr<Selector> selector_;
  Capacity capacity_;
  Losses losses_;
  std::optional<RouteRule> plain_rule_;  // where the pieces do no more than Kernels::route
  std::vector<uint8_t> alive_;           // [E]; empty: all
  std::vector<int64_t> demand_, history_;
};

}  // namespace cadre
