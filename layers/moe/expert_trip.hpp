// SPDX-License-Identifier: Apache-2.0
// The routed experts of a layer, spread over the lane's expert-parallel group, from the rows of tokens to the weighted sums
// of what their experts make of them, y_t = sum_k w_tk E_k(x_t), and the way back. It reads as straight-line code: each
// co_await is a place where another lane may run.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "layers/moe/experts.hpp"
#include "layers/moe/lane_context.hpp"

namespace cadre {

struct SlotRecord;

struct TripOptions {
  ExpertOptions experts = {};
  int top_k = 0;           // experts of a token in an even routing, for dry runs
  double diversity = 0.0;  // weight of the diversity loss
};

class ExpertTrip {
 public:
  // `map` says which experts are here; their parameters are named `<prefix>.<id>`.
  ExpertTrip(const std::string& prefix, const TripOptions& options, const ExpertMap& map, int expert_rank);

  struct Saved {
    Tensor ids, weights;  // [T,slots]
    Route route;

    // The expert side: R rows came, with S slots.
    ExpertBatch batch;
    Tensor slot_weight;   // [S] in the order of arrival
    Tensor place_weight;  // [S] in expert order
    Experts::Saved experts;
    Tensor expert_out;  // [S,out] in expert order
    Tensor slot_out;    // [slots of the plan,out], token by token, where outputs are compared (diversity loss)
  };

  // Work that needs nothing of the trip.
  using Meanwhile = std::function<void()>;

  // x [T,in], y [T,out], ids i32[T,slots] (-1 for none) and weights [T,slots], which `saved` keeps. `meanwhile` runs while rows
  // travel. Collective over the lane's expert group. `ctx` and `saved` must outlive the task.
  Task<Tensor> forward(LaneContext& ctx, Tensor x, Tensor ids, Tensor weights, Saved& saved,
                       Meanwhile meanwhile = {}) const;
  // This rank's share of the diversity loss.
  double diversity_loss(const LaneContext& ctx, const Saved& saved) const;

  // dy [T,out], dx [T,in]. `learned` gets the gradient of the weights, [T,slots], before dx is there. Weight gradients of the
  // experts go to ctx.deferred; until they have run, dy, `ctx` and `saved` must stay as they are.
  using Learned = std::function<void(const Tensor& dweights)>;
  Task<Tensor> backward(LaneContext& ctx, Saved& saved, Tensor dy, Meanwhile meanwhile, Learned learned);

  void each_parameter(const ParameterVisitor& visit) { experts_.each_parameter(visit); }
  const ExpertMap& map() const { return map_; }
  Experts& experts() { return experts_; }
  const Experts& experts() const { return experts_; }

 private:
  enum class Weighted { no, yes };

  void make_plan(LaneContext& ctx, Saved& saved) const;
  RowFormat dispatch_format(const LaneContext& ctx, int64_t width) const {
    return {ctx.dtype, width, ctx.wire.dispatch};
  }
  // records [S] in the order of arrival
  void learn_batch(LaneContext& ctx, const SlotRecord* records, Saved& saved) const;
  // One row per place goes home to its token, where the rows of a token are added up. places [S,W], result [T,W].
  Task<Tensor> combine(LaneContext& ctx, Tensor places, Weighted weighted, Saved& saved) const;
  bool compares_outputs(const LaneContext& ctx) const { return ctx.training && options_.diversity > 0.0; }
  // Keeps the outputs that came home one a slot.
  void keep_outputs(LaneContext& ctx, const Elements& home, Saved& saved) const;
  // Adds the gradient of the diversity loss to that of the experts' outputs, d_out [S,out] in expert order.
  Task<void> add_diversity_grad(LaneContext& ctx, Tensor d_out, const Saved& saved) const;
  // The weights of the plan's slots, [slots], token by token.
  Tensor weights_by_token(LaneContext& ctx, const Saved& saved) const;
  // The gradient of the routing weights from the output gradients as they came to the experts, R rows: here, one number a
  // slot, on its way home, and arrived, [T,slots].
  Tensor weights_grad(LaneContext& ctx, const Elements& d_rows, const Saved& saved) const;
  std::unique_ptr<RowTransfer> send_weights_grad(LaneContext& ctx, const Tensor& d_weights, Saved& saved) const;
  Tensor arrived_weights_grad(LaneContext& ctx, RowTransfer& back, const Saved& saved) const;

  TripOptions options_;
  ExpertMap map_;
  int expert_rank_;
  Experts experts_;
};

}  // namespace cadre
