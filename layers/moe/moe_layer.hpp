// SPDX-License-Identifier: Apache-2.0
// A mixture-of-experts layer, y = shared(x) + sum_k w_k E_k(x), whose experts are spread over the lane's
// expert-parallel group: a router, the routed experts, and the shared expert.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/moe/projections.hpp"
#include "layers/moe/routed_experts.hpp"
#include "layers/moe/shared_expert.hpp"
#include "layers/router/lane_context.hpp"
#include "layers/router/router.hpp"

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
  FfnNames expert_names = {};
  std::string_view shared_name = "shared_experts";
  std::string_view shared_gate_name = {};  // of the gate of the shared expert; empty: none
};

class MoeLayer {
 public:
  // `map` says which experts are here; names are `<prefix>.gate`, `<prefix>.experts.<id>`, `<prefix>.<shared_name>`.
  MoeLayer(const std::string& prefix, const MoeOptions& options, const ExpertMap& map, int expert_rank);

  struct Saved : RoutedExperts::Saved {
    Tensor x;  // [T,H]
    Router::Saved router;
    std::optional<SharedExpert::Saved> shared;
    double balance_loss = 0.0;       // this rank's share, of all losses of the router
    Projections::Saved projections;  // instead of the dispatch above, where experts are projections

    // Of each Dispatch in it.
    std::vector<const RoutedExperts::Saved*> routed() const {
      if (!projections.inner.defined()) return {this};
      return {&projections.gate, &projections.up, &projections.down};
    }
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
  // See Experts::relocate. Throws where experts are projections.
  void relocate(const ExpertMap& map, int expert_rank);
  // Each parameter of an expert whose place relocate() would give to another one, with the name that it would have then.
  using SuccessorVisitor = std::function<void(Parameter&, const std::string& name)>;
  void each_successor(const ExpertMap& map, int expert_rank, const SuccessorVisitor& visit);
  // See RoutedExperts; projections are not balanced.
  void balance_on_host(HostWeights weights) { experts_->balance_on_host(std::move(weights)); }
  void forget_shared_grads() {
    if (experts_) experts_->forget_shared_grads();
  }
  std::vector<OwnedValues> take_shared_grads() {
    return experts_ ? experts_->take_shared_grads() : std::vector<OwnedValues>();
  }
  // One of the experts of this rank, in the order of the map. Throws where experts are projections.
  const Expert& expert(int index) { return whole_experts().expert(index); }
  void each_parameter_of_expert(int index, const ParameterVisitor& visit) {
    whole_experts().each_parameter(index, visit);
  }

 private:
  Experts& whole_experts();

  MoeOptions options_;
  ExpertMap map_;
  Router router_;
  std::optional<SharedExpert> shared_;
  std::optional<RoutedExperts> experts_;
  std::optional<Projections> projections_;
};

}  // namespace cadre
