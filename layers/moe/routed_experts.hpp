// SPDX-License-Identifier: Apache-2.0
// The routed experts of a layer, spread over the lane's expert-parallel group: y_t = sum_k w_tk E_k(x_t), and its gradients.
// Each co_await is a place where another lane may run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "comm/exchange/dispatch.hpp"
#include "comm/exchange/host_balance.hpp"
#include "layers/moe/experts.hpp"
#include "layers/moe/guest_experts.hpp"
#include "layers/router/lane_context.hpp"

namespace cadre {

struct RoutedOptions {
  ExpertOptions experts = {};
  int top_k = 0;           // experts of a token in an even routing, for dry runs
  double diversity = 0.0;  // weight of the diversity loss
};

class RoutedExperts {
 public:
  // `map` says which experts are on which rank; `rank` is this one. Parameters are named `<prefix>.<id>`.
  RoutedExperts(const std::string& prefix, const RoutedOptions& options, const ExpertMap& map, int rank);

  struct Saved {
    std::unique_ptr<Dispatch> dispatch;
    std::optional<BalancedRows> balanced;  // where rows of experts are cut over the ranks of their host
    Experts::Saved experts;
    Tensor expert_out;  // [S,out] in expert order; S slots came to this rank
    Tensor slot_out;    // [slots of this rank's tokens,out] by (token, k), where outputs are compared (diversity loss)
  };

  // Work that needs nothing of the routed experts and runs while rows travel.
  using Meanwhile = Dispatch::Meanwhile;

  // x [T,in], y [T,out], ids i32[T,K] (-1 for none), weights [T,K]. Collective over the lane's expert group. `ctx` and `saved`
  // must outlive the task.
  Task<Tensor> forward(LaneContext& ctx, Tensor x, Tensor ids, Tensor weights, Saved& saved,
                       Meanwhile meanwhile = {}) const;
  // This rank's share of the diversity loss.
  double diversity_loss(const LaneContext& ctx, const Saved& saved) const;

  // dy [T,out], dx [T,in]. `learned` gets the gradient of the weights, [T,K], before dx is complete. Weight gradients of the
  // experts go to ctx.deferred; until they have run, dy, `ctx` and `saved` must not change.
  using Learned = std::function<void(const Tensor& dweights)>;
  Task<Tensor> backward(LaneContext& ctx, Saved& saved, Tensor dy, Meanwhile meanwhile, Learned learned);

  void each_parameter(const ParameterVisitor& visit) { experts_.each_parameter(visit); }
  Experts& experts() { return experts_; }
  // See Experts::relocate. Not while a Saved is in use.
  void relocate(const ExpertMap& map, int rank) {
    map_ = map;
    rank_ = rank;
    experts_.relocate(map, rank);
  }

  // From now on the rows of busy experts are cut over the ranks of their host, until relocate() and again after the next call.
  // The map has no replicas.
  void balance_on_host(HostWeights weights);
  // With it, for each step: forgets gradients of guests, and gives what is to be summed at owners when all weight gradients
  // are there. In the order of experts.
  void forget_shared_grads();
  std::vector<OwnedValues> take_shared_grads();

 private:
  // Whose rows this rank computes: saved.balanced and the experts of it. `version` of each rank's experts.
  Task<void> balance(LaneContext& ctx, Tensor ids, Saved& saved, std::vector<int64_t>& counts) const;
  void add_weight_grad(Context& ctx, const Saved& saved, int part);
  std::unique_ptr<Dispatch> plan(LaneContext& ctx, const Tensor& ids, const Tensor& weights, const Saved& saved,
                                 std::span<const int64_t> counts) const;
  // The sum over the places of each token. places [S,W] in expert order, result [T,W]; `each` as in KernelRowAdder.
  Task<Tensor> combine(LaneContext& ctx, Tensor places, Weighted weighted, Dispatch& dispatch, Tensor each) const;
  // For dropout: the number of the token of each place, i64[S].
  Task<Tensor> tokens_of_places(LaneContext& ctx, Dispatch& dispatch) const;
  // Adds the gradient of the diversity loss to d_out [S,out], which is in expert order.
  Task<void> add_diversity_grad(LaneContext& ctx, Tensor d_out, const Saved& saved) const;

  std::string prefix_;
  RoutedOptions options_;
  ExpertMap map_;
  int rank_;
  Experts experts_;
  std::unique_ptr<GuestExperts> guests_;    // with balance_on_host
  std::map<int, std::set<int>> guests_of_;  // ranks that made gradients of experts of this rank in this step
};

}  // namespace cadre
