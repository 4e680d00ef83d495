// SPDX-License-Identifier: Apache-2.0
// The losses that need no other rank: of single tokens (z) and of whole sequences, which are never cut.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/router/routing.hpp"

namespace cadre {

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

}  // namespace cadre
