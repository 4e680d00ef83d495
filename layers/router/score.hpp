// SPDX-License-Identifier: Apache-2.0
// The first piece of a router: a number for each (token, expert), in fp32 whatever the precision of other products is.
//
//   x -> (jitter) -> linear [-> gelu -> linear ...] -> logits -> (noise) -> softmax or sigmoid -> scores
//
// Jitter (Fedus et al. 2021): x is multiplied by U(1 - eps, 1 + eps), in training only. Noise (Shazeer et al. 2017, eq. 4):
// logits + N(0,1) softplus(x W_noise), in training only. Two levels (Jordan and Jacobs 1994): a second gate has a logit
// for each group of neighbouring experts, and an expert's score is softmax(group) softmax(expert within its group).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/nn/linear.hpp"
#include "layers/router/lane_context.hpp"
#include "layers/router/options.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// Parameters: `<prefix>.weight` [E, width of the last hidden layer or H], `<prefix>.hidden.<i>.weight`,
// `<prefix>.noise.weight` [E,H], which starts at zero, and `<prefix>.coarse.weight` [groups,H].
class Scorer {
 public:
  Scorer(const std::string& prefix, const ScoreOptions& options);

  struct Saved {
    Tensor factors;                     // [T,H] of the jitter
    std::vector<Linear::Saved> layers;  // the last one makes the logits
    std::vector<Tensor> before_gelu;
    Linear::Saved coarse, noise;
    Tensor within_group;              // [T,E] softmax of the logits within their group
    Tensor clean;                     // [T,E] logits without noise
    Tensor normal;                    // [T,E] the numbers drawn
    Tensor noise_input;               // [T,E] x W_noise, before softplus
    Tensor logits;                    // [T,E] with noise; -infinity for experts that are dead
    Tensor scores;                    // [T,E]
    std::vector<int64_t> not_finite;  // tokens, ascending, whose logits were not and are 0 instead; training only
  };

  // Gradients that enter: of the scores and, where defined, of the logits and, with noise, of the clean logits and of the
  // standard deviation of the noise. All [T,E].
  struct Grads {
    Tensor scores;
    Tensor logits;
    Tensor clean = {};
    Tensor noise_std = {};
  };

  // The logits, and room for the scores.
  // for_host: the host reads logits and scores.
  void forward(LaneContext& ctx, const Tensor& x, bool for_host, Saved& saved) const;
  // Once the logits are computed. `alive` [E], or empty: all. Returns how many tokens have their largest logit at an
  // expert that is not. When a logit is not finite: in training see Saved, so that all ranks get to the end of the step and
  // skip it together; else throws ErrorKind::numerics with the number of tokens and the first of them.
  int64_t check(const LaneContext& ctx, std::span<const uint8_t> alive, Saved& saved) const;
  // The scores of those logits; zeros where nobody is alive.
  void score(Context& ctx, std::span<const uint8_t> alive, const Saved& saved) const;
  Tensor input_grad(Context& ctx, Saved& saved, const Grads& grads) const;  // dx [T,H]
  // From the gradient of the logits, [T,E], of which nothing is left afterwards.
  Tensor input_grad_of_logits(Context& ctx, Saved& saved, Tensor dlogits, const Grads& grads) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

 private:
  Tensor gate(Context& ctx, Tensor x, Saved& saved) const;
  void add_noise(LaneContext& ctx, const Tensor& x, Saved& saved) const;

  std::string prefix_;
  ScoreOptions options_;
  std::vector<Linear> layers_;
  std::vector<Linear> coarse_;  // none or one
  std::vector<Linear> noise_;   // none or one
};

double softplus(double x);

// Two gates, one behind the other (Jordan and Jacobs 1994; Shazeer et al. 2017, appendix B): a coarse one over groups of
// neighbouring experts and a fine one within each group, as one vector of logits whose softmax is their product.

// With G groups, coarse [T,G]: logits [T,E] become coarse_g + log softmax within the group. within [T,E] receives that
// softmax.
void join_levels(const Tensor& coarse, const Tensor& logits, const Tensor& within);
// dlogits [T,E], of the joined logits, becomes that of the fine ones; d_coarse [T,G] is overwritten.
void join_levels_grad(const Tensor& within, const Tensor& dlogits, const Tensor& d_coarse);

}  // namespace cadre
