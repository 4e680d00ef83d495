// SPDX-License-Identifier: Apache-2.0
// Picks K experts for each token: linear -> score -> (score + bias), within the best groups, decides -> weights from the
// scores themselves.
#pragma once

#include <string>
#include <vector>

#include "layers/moe/balance.hpp"
#include "layers/moe/groups.hpp"
#include "layers/moe/weights.hpp"
#include "layers/nn/linear.hpp"

namespace cadre {

enum class ScoreFunction { softmax, sigmoid };

struct RouterOptions {
  int64_t hidden = 0;
  int num_experts = 0;
  int top_k = 0;
  ScoreFunction score = ScoreFunction::softmax;
  WeightOptions weights;
  GroupLimit groups;
  bool selection_bias = false;  // balance without auxiliary loss: a bias decides, but does not weigh
  double init_std = 0.02;
};

// Parameters: `<prefix>.weight` [E,H] and, with a selection bias, the buffer `<prefix>.e_score_correction_bias` [E].
class Router {
 public:
  Router(const std::string& prefix, const RouterOptions& options);

  struct Saved {
    Linear::Saved gate;
    Tensor scores;                // [T,E]
    Tensor ids;                   // i32[T,K], best first
    Tensor weights;               // [T,K]
    std::vector<int64_t> counts;  // [E], of this rank's tokens
  };

  // x [T,H]; everything it finds is in `saved`. Throws ErrorKind::numerics on a NaN score.
  void forward(Context& ctx, const Tensor& x, Saved& saved) const;
  // dweights [T,K] and the balance loss to dx [T,H].
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dweights, const BalanceLoss& balance) const;
  void weight_grad(Context& ctx, const Saved& saved) { gate_.weight_grad(ctx, saved.gate); }
  void each_parameter(const ParameterVisitor& visit);

  // After a step: moves the selection bias against the load of the whole global batch. Nothing without a bias, nor when
  // it is frozen.
  void update_bias(std::span<const int64_t> global_counts, double rate);

 private:
  void select(Context& ctx, Saved& saved) const;

  RouterOptions options_;
  Linear gate_;
  Parameter bias_;
};

}  // namespace cadre
