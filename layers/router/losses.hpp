// SPDX-License-Identifier: Apache-2.0
// The losses that keep experts evenly used. All but two are functions of sums over the tokens of a micro-batch on all
// ranks, T of them, which one small reduction makes; the losses of the micro-batches of a step add up to a mean weighted
// by tokens. Letters: c_e slots of expert e (constant: no gradient), p_e the mean over tokens of score / sum of the token's
// scores, s_e the mean score, w_e the sum of routing weights, l_e the sum of noisy_load; D devices, each with the experts E_d,
// which are neighbours or have one remainder e mod D.
//
//   balance            E sum_e f_e p_e, f_e = c_e / sum c        Switch (Fedus et al. 2021), GShard; or, by sequence, A.3 of V3:
//                      the mean over sequences of sum_e f_e p_e of their own tokens, f_e = E / (K L) times how often e is
//                      among the K best scores, whatever bias and groups chose
//   kl                 KL(p || 1/E)
//   importance         CV^2(w) = var(w) / mean(w)^2              Shazeer et al. 2017; or, in form `raw`, var(w)
//   load               CV^2(l), with noise only                  the same
//   expert             sum_e f_e s_e, f_e = E c_e / (K T)        DeepSeekMoE, V2
//   device             sum_d f_d s_d, f_d the mean of f_e, s_d the sum of s_e over E_d
//   communication      sum_d f_d s_d, f_d = D / (M T) times tokens with an expert in E_d; M the devices a token may visit
//   expert_variance    CV^2(p); or, in form `counts`, var(c) / (T K / E)^2
//   device_variance    CV^2(sums of p over E_d); or, in form `counts`, var(sums of c) / (T K / D)^2
//
// A variance divides by n or n - 1, as VarianceForm says. Counts have no gradient: those of form `counts` have that of T K p,
// the counts that the scores expect.
//
//   diversity          mean over tokens of the mean cosine of the outputs of two of the token's experts; see diversity.hpp
//   z                  mean over tokens of logsumexp(logits)^2   ST-MoE (Zoph et al. 2022)
#pragma once

#include <cstdint>
#include <vector>

#include "layers/router/loss_terms.hpp"
#include "layers/router/options.hpp"
#include "layers/router/routing.hpp"
#include "layers/router/score.hpp"

namespace cadre {

class Losses {
 public:
  Losses(const LossOptions& options, int num_experts, int top_k);

  // What a micro-batch keeps between the passes.
  struct Saved {
    std::vector<double> sums;  // of this rank, then of all
    double value = 0.0;        // this rank's share: the shares of all ranks add up to the loss
    // Derivatives of the loss, [E] and [sequences, E]; empty: none.
    std::vector<double> by_prob, by_sequence;  // by each token's score / sum of scores
    std::vector<double> by_score, by_weight, by_load;
  };

  bool any() const;
  bool need_logits() const { return options_.z > 0.0 || options_.load > 0.0; }
  bool need_noise() const { return options_.load > 0.0; }

  // For a back end that routes in one pass: takes what `result` is to hold for losses; and, once that is launched, launches
  // the sums that begin() and finish() would else make of all scores.
  void take_results(LaneContext& ctx, int64_t num_tokens, RouteResult& result) const;
  void launch_sums(LaneContext& ctx, const RouteResult& result, Routing& routing) const;

  // This rank's sums, in saved.sums, to be added up over ranks; empty when no loss needs any.
  void begin(LaneContext& ctx, const Routing& routing, const Scorer::Saved& score, Saved& saved) const;
  // With the sums of all ranks: the value and the derivatives.
  void finish(const LaneContext& ctx, const Routing& routing, Saved& saved) const;

  // Adds the gradient by the routing weights, [T,slots], and that by everything else.
  void add_weights_grad(const Routing& routing, const Saved& saved, const Tensor& dweights) const;
  void add_grad(const LaneContext& ctx, const Routing& routing, const Scorer::Saved& score, const Saved& saved,
                const Scorer::Grads& grads) const;
  // The same by scores, for Kernels::route_grad.
  RouteSlopes slopes(LaneContext& ctx, const Saved& saved) const;

 private:
  enum Column { kCount, kProb, kScore, kWeight, kLoad, kVisit, kNumColumns };

  bool needs(Column column) const;
  size_t width_of(Column column) const;
  std::vector<double> column(const std::vector<double>& sums, Column wanted, double scale) const;
  bool need_sums() const;
  bool by_sequence() const { return options_.balance > 0.0 && options_.by_sequence; }
  void begin_sequences(LaneContext& ctx, const Routing& routing, Saved& saved) const;
  double sequence_value(const LaneContext& ctx, const Routing& routing, const Saved& saved) const;

  LossOptions options_;
  int num_experts_;
  int top_k_;
};

}  // namespace cadre
