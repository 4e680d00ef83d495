// SPDX-License-Identifier: Apache-2.0
// What moves a choice without weighing it: choice = (score + task bias) history + balance bias. The weights of the chosen
// come from the scores alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/moe/routing.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

struct BiasOptions {
  bool balance = false;                   // a bias moved against the load, see update_selection_bias
  double task = 0.0;                      // added for experts of the token's task
  std::vector<int32_t> expert_task = {};  // [E] the task of each expert, -1: none; empty: no expert has one
  int num_tasks = 0;
  bool history = false;

  bool moves() const { return balance || task != 0.0 || history; }
};

// How often an expert helped the tokens of a task. After a backward pass the gradient of a slot's weight, dL/dw = <dy, E(x)>,
// says whether more of that expert would have lowered the loss: a success when it is negative. The success rate is a
// running mean over steps, rate += 0.1 (successes / slots - rate), 0.5 at the start and left alone by a step without
// slots; the factor is 0.95 + 0.1 rate, clamped to [0.95, 1.05]. Counts are summed over all ranks, so every rank has the
// same factors.
inline constexpr double kHistoryRate = 0.1;
double history_factor(double success_rate);

// Buffers: `<prefix>.e_score_correction_bias` [E] and `<prefix>.history` [tasks + 1, E] (the last row: tokens without a
// task).
class SelectionBias {
 public:
  SelectionBias(const std::string& prefix, int num_experts, const BiasOptions& options);

  // choice [T,E] from scores [T,E]; choice may be scores.
  void apply(const TokenFacts& tokens, const Tensor& scores, const Tensor& choice) const;

  // What this rank's tokens add to the history: [2, tasks + 1, E], successes and slots. dweights [T,slots].
  void add_history(const TokenFacts& tokens, const Tensor& ids, const Tensor& dweights,
                   std::vector<int64_t>& counts) const;
  void update_history(std::span<const int64_t> global_counts);
  void update_balance(std::span<const int64_t> global_counts, double rate);

  size_t num_history_counts() const {
    return options_.history ? static_cast<size_t>(2 * num_rows() * num_experts_) : 0;
  }
  // What is added to every token's scores and nothing else is done to them: the balance [E], or undefined.
  Tensor balance() const { return options_.balance ? balance_.value : Tensor(); }
  void each_parameter(const ParameterVisitor& visit);
  const BiasOptions& options() const { return options_; }

 private:
  int64_t num_rows() const { return options_.num_tasks + 1; }
  int64_t row_of(const TokenFacts& tokens, int64_t t) const;

  int num_experts_;
  BiasOptions options_;
  Parameter balance_;
  Parameter history_;  // success rate - 0.5, so that it starts at zero
};

// b_e += rate sign(mean count - count_e), sign(0) = 0 (Wang et al. 2024, algorithm 1).
void update_selection_bias(std::span<const int64_t> global_counts, double rate, const Tensor& bias);

}  // namespace cadre
