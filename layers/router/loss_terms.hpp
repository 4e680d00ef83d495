// SPDX-License-Identifier: Apache-2.0
// What the losses of a router are made of (losses.hpp joins them), each with its derivative: functions of one number for each
// expert or device, sums over tokens, losses of single tokens, and smooth counts of the load.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers/router/options.hpp"
#include "layers/router/routing.hpp"
#include "layers/router/score.hpp"

namespace cadre {

// A value, and its derivative with respect to each number it was made from.
struct Term {
  double value = 0.0;
  std::vector<double> slope;
};

// KL(p || uniform) = sum_i p_i log(n p_i), in nats; p_i >= 0.
Term kl_to_uniform(std::span<const double> shares);

Term variance_of(std::span<const double> loads, Variance variance);
// The same divided by the square of the mean. Zero when all numbers are.
Term squared_cv(std::span<const double> loads, Variance variance);

// factor sum_i fixed_i p_i, whose derivative is factor fixed_i.
Term weighted_sum(double factor, std::span<const double> fixed, std::span<const double> numbers);

// [E], the device of each expert.
std::vector<int> devices_of(int num_experts, int devices, DeviceLayout layout);

// The sum of the numbers of each device, and back from the derivative by a sum to that by each number.
std::vector<double> by_device(std::span<const double> numbers, int devices,
                              DeviceLayout layout = DeviceLayout::contiguous);
std::vector<double> by_expert(std::span<const double> device_slopes, int num_experts,
                              DeviceLayout layout = DeviceLayout::contiguous);

// Sums over this rank's tokens that balance losses are functions of, and the way back to single tokens.

// [E], sums over tokens of the scores [T,E], or of score / (sum of the token's scores + 1e-20).
std::vector<double> column_sums(const Tensor& scores, bool normalised);
// [E], sums of the routing weights.
std::vector<double> weight_sums(const Routing& routing);
// [devices], tokens with an expert on each device; device_of [E].
std::vector<double> device_visits(const Routing& routing, int devices, const std::vector<int>& device_of);

// Adds to dscores [T,E] the gradient of sum_te slope_e s_te / (sum of the token's scores); slopes are [E] for each
// `tokens_a_row` tokens in turn.
void add_prob_grad(const std::vector<double>& slopes, int64_t tokens_a_row, const Tensor& scores,
                   const Tensor& dscores);
// Adds slopes [E] to every row.
void add_row(const std::vector<double>& slopes, const Tensor& dscores);

// The losses that need no other rank: of single tokens (z) and of whole sequences, which are never cut.

// sum over tokens of logsumexp(logits)^2; logits [T,E]
double sum_of_squares(const Tensor& logits);
// adds scale times its derivative to dlogits [T,E]
void add_z_grad(double scale, const Tensor& logits, const Tensor& dlogits);

// Sequence-wise balance (DeepSeek-V3, arXiv 2412.19437, eq. 17 to 20). slopes [sequences, E]: scale E / (K L) times how often
// each expert is in best i32[T,K], whose rows are sequences of L tokens in turn.
std::vector<double> sequence_slopes(double scale, int64_t tokens_a_sequence, const Tensor& best, int num_experts);
// sum over tokens and experts of slope s_te / sum of the token's scores
double sequence_loss(const std::vector<double>& slopes, int64_t tokens_a_sequence, const Tensor& scores);

// L: what the tokens say, or all of them.
int64_t tokens_a_sequence(const TokenFacts& tokens, const Routing& routing);

// How likely noisy top-k (Shazeer et al. 2017, eq. 8 to 10) is to choose an expert for a token if the noise on that expert
// alone were drawn again: P(x,i) = Phi((clean_i - threshold_i) / deviation_i), where threshold_i is the K-th largest of the
// noisy logits of the others and the deviation is softplus(noise_input_i). A smooth count of the load.

// [E], the sums of P over this rank's tokens. Needs K < E.
std::vector<double> noisy_load(const Scorer::Saved& saved, int top_k);

// Adds slopes [E] times the derivative of these sums to the gradients of the noisy logits, the clean ones, and the
// deviation, all [T,E] and defined. The threshold is a noisy logit and gets its part.
void add_noisy_load_grad(const Scorer::Saved& saved, int top_k, const std::vector<double>& slopes,
                         const Scorer::Grads& grads);

}  // namespace cadre
