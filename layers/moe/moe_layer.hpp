// SPDX-License-Identifier: Apache-2.0
// A mixture-of-experts layer, y = shared(x) + sum_k w_k E_k(x), whose experts are spread over the lane's
// expert-parallel group. Forward and backward read as straight-line code: each co_await is a place where another lane
// may run.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers/moe/experts.hpp"
#include "layers/moe/lane_context.hpp"
#include "layers/moe/router.hpp"

namespace cadre {

struct MoeOptions {
  int64_t hidden = 0;
  int64_t expert_width = 0;
  ExpertKinds expert_kinds = ExpertKinds::same;
  int inner_experts = 0;  // of an expert that is a mixture
  int inner_top_k = 0;
  int64_t shared_width = 0;   // 0: no shared expert
  double shared_scale = 1.0;  // of its output: 1 / number of shared experts makes their sum a mean
  Activation activation = Activation::silu;
  bool gated = true;
  double init_std = 0.02;
  RouterOptions router = {};
};

struct SlotRecord;

class MoeLayer {
 public:
  // `map` says which experts are here; names are `<prefix>.gate`, `<prefix>.experts.<id>`, `<prefix>.shared_experts`.
  MoeLayer(const std::string& prefix, const MoeOptions& options, const ExpertMap& map, int expert_rank);

  struct Saved {
    Tensor x;  // [T,H]
    Router::Saved router;
    std::optional<Ffn::Saved> shared;
    double balance_loss = 0.0;  // this rank's share, of all losses of the router
    Route route;

    // The expert side: R rows came, with S slots.
    ExpertBatch batch;
    Tensor slot_weight;   // [S] in the order of arrival
    Tensor place_weight;  // [S] in expert order
    Experts::Saved experts;
    Tensor expert_out;  // [S,H] in expert order
    Tensor slot_out;    // [slots of the plan,H], token by token, where outputs are compared (diversity loss)
  };

  // Collective over the lane's expert group and, for losses, capacity and rules of selection that look at all tokens, over
  // its data group. `ctx` and `saved` must outlive the task.
  Task<Tensor> forward(LaneContext& ctx, Tensor x, Saved& saved) const;  // x, y [T,H]
  // dy, dx [T,H]. Weight gradients go to ctx.deferred, each as soon as it can be computed; until they have run, dy, `ctx`
  // and `saved` must stay as they are.
  Task<Tensor> backward(LaneContext& ctx, Saved& saved, Tensor dy);
  void each_parameter(const ParameterVisitor& visit);

  Router& router() { return router_; }
  const ExpertMap& expert_map() const { return map_; }
  // One of the experts of this rank, in the order of the map.
  const Expert& expert(int index) const { return experts_.expert(index); }
  void each_parameter_of_expert(int index, const ParameterVisitor& visit) { experts_.each_parameter(index, visit); }

 private:
  enum class Weighted { no, yes };

  void make_plan(LaneContext& ctx, int64_t num_tokens, Saved& saved) const;
  RowFormat dispatch_format(const LaneContext& ctx) const { return {ctx.dtype, options_.hidden, ctx.wire.dispatch}; }
  // records [S] in the order of arrival
  void learn_batch(LaneContext& ctx, const SlotRecord* records, Saved& saved) const;
  Tensor scaled_shared(LaneContext& ctx, const Tensor& rows) const;
  // One row per place goes home to its token, where the rows of a token are added up. places [S,H], result [T,H].
  Task<Tensor> combine(LaneContext& ctx, Tensor places, Weighted weighted, Saved& saved) const;
  bool compares_outputs(const LaneContext& ctx) const { return ctx.training && options_.router.losses.diversity > 0.0; }
  // Keeps the outputs that came home one a slot.
  void keep_outputs(LaneContext& ctx, const Elements& home, Saved& saved) const;
  // Adds the gradient of the diversity loss to that of the experts' outputs, d_out [S,H] in expert order.
  Task<void> add_diversity_grad(LaneContext& ctx, Tensor d_out, const Saved& saved) const;
  // The weights of the plan's slots, [slots], token by token.
  Tensor weights_by_token(LaneContext& ctx, const Saved& saved) const;
  // The gradient of the routing weights from the output gradients as they came to the experts, R rows: here, one number a
  // slot, on its way home, and arrived, [T,slots].
  Tensor weights_grad(LaneContext& ctx, const Elements& d_rows, const Saved& saved) const;
  std::unique_ptr<RowTransfer> send_weights_grad(LaneContext& ctx, const Tensor& d_weights, Saved& saved) const;
  Tensor arrived_weights_grad(LaneContext& ctx, RowTransfer& back, const Saved& saved) const;

  MoeOptions options_;
  ExpertMap map_;
  int expert_rank_;
  Router router_;
  std::optional<Ffn> shared_;
  Experts experts_;
};

}  // namespace cadre
