// SPDX-License-Identifier: Apache-2.0
// What moves a choice: choice = (score + task bias) history + balance bias. The weights of the chosen come from the scores
// alone or, where BiasOptions::weighs, from the first two terms; the balance bias never weighs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/router/options.hpp"
#include "layers/router/routing.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

// How good an expert was for the tokens of a task, as far as a backward pass can tell: the gradient of a slot's weight,
// g = dL/dw = <dy, E(x)>, is negative where more of that expert would have lowered the loss.
//   success   the share of slots with g < 0
//   quality   of 10: the mean over slots of 5 (1 - g / largest |g| of the token's slots); 10 for the expert that helped its
//             token most, 5 for one that changed nothing
// Both are running means over steps, moved by 0.1 towards the mean of a step, from 0.5 and 5, and left alone by a step without
// slots. Sums of whole numbers over all ranks, so every rank has the same.
struct ExpertRecord {
  double quality = 5.0;
  double success = 0.5;
};
inline constexpr double kHistoryRate = 0.1;

// How much an expert is preferred to one with the record `mean`, that of the experts of the task: half a step each for
// quality and success, a step of 0.05 for 0.4 of quality and 3 % of success,
//   clamp(1 + 0.05 ((quality - mean.quality) / 0.4 + (success - mean.success) / 0.03) / 2, 0.95, 1.05)
// so that 9.2 and 95 % are 1.05 where 8.8 and 92 % are 1.
double history_factor(const ExpertRecord& record, const ExpertRecord& mean);

// Of one expert for one task.
struct ExpertHistory {
  ExpertRecord record;
  int64_t slots = 0;  // that it is made of; up to 2^24 is counted
  double factor = 1.0;
};

// Buffers: `<prefix>.e_score_correction_bias` [E] and `<prefix>.history` [3 (tasks + 1), E]: success - 0.5, then
// quality / 10 - 0.5, then slots, each by task, tokens without one last.
class SelectionBias {
 public:
  SelectionBias(const std::string& prefix, int num_experts, const BiasOptions& options);

  // choice [T,E] from scores [T,E]; choice may be scores.
  void apply(const TokenFacts& tokens, const Tensor& scores, const Tensor& choice) const;
  // (score + task bias) history, [T,E], and the way back: dscores [T,E] is that of the result before.
  void weigh(const TokenFacts& tokens, const Tensor& scores, const Tensor& weighing) const;
  void weigh_grad(const TokenFacts& tokens, const Tensor& dscores) const;
  // Whether routing weights differ from those of the scores.
  bool weighs() const { return options_.weighs && (options_.task != 0.0 || options_.history); }

  // What this rank's tokens add to the history: [3, tasks + 1, E], successes, quality in units of 2^-20 and slots. dweights
  // [T,slots].
  void add_history(const TokenFacts& tokens, const Tensor& ids, const Tensor& dweights,
                   std::vector<int64_t>& counts) const;
  void update_history(std::span<const int64_t> global_counts);
  void update_balance(std::span<const int64_t> global_counts, double rate);

  size_t num_history_counts() const {
    return options_.history ? static_cast<size_t>(3 * num_rows() * num_experts_) : 0;
  }
  // [tasks + 1][E], the last row of tokens without a task; empty where no history is kept. An expert without slots has factor 1,
  // and the mean of a task is over the others.
  std::vector<std::vector<ExpertHistory>> history() const;
  // What is added to every token's scores and nothing else is done to them: the balance [E], or undefined.
  Tensor balance() const { return options_.balance ? balance_.value : Tensor(); }
  void each_parameter(const ParameterVisitor& visit);
  const BiasOptions& options() const { return options_; }

 private:
  int64_t num_rows() const { return options_.num_tasks + 1; }
  int64_t row_of(const TokenFacts& tokens, int64_t t) const;
  // [tasks + 1, E]; empty without a history.
  std::vector<double> factors() const;

  int num_experts_;
  BiasOptions options_;
  Parameter balance_;
  Parameter history_;  // starts at zero
};

// b_e += rate sign(mean count - count_e), sign(0) = 0 (Wang et al. 2024, algorithm 1).
void update_selection_bias(std::span<const int64_t> global_counts, double rate, const Tensor& bias);

}  // namespace cadre
