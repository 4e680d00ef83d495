// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/bias.hpp"

#include <algorithm>
#include <numeric>

#include "layers/tensor/floating.hpp"

namespace cadre {

double history_factor(double success_rate) { return std::clamp(0.95 + 0.1 * success_rate, 0.95, 1.05); }

SelectionBias::SelectionBias(const std::string& prefix, int num_experts, const BiasOptions& options)
    : num_experts_(num_experts),
      options_(options),
      balance_(make_vector(prefix + ".e_score_correction_bias", num_experts, Init::Kind::zeros, Placement::buffer)),
      history_(make_weight({{prefix + ".history", options.num_tasks + 1}}, num_experts, 0.0, Placement::buffer)) {}

int64_t SelectionBias::row_of(const TokenFacts& tokens, int64_t t) const {
  const int32_t task = tokens.task.defined() ? tokens.task.data<int32_t>()[t] : -1;
  return task >= 0 && task < options_.num_tasks ? task : options_.num_tasks;
}

void SelectionBias::apply(const TokenFacts& tokens, const Tensor& scores, const Tensor& choice) const {
  const int64_t width = scores.dim(1);
  const bool has_tasks = options_.task != 0.0 && tokens.task.defined() && !options_.expert_task.empty();
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < scores.dim(0); ++t) {
      const T* score = scores.data<T>() + t * width;
      T* out = choice.data<T>() + t * width;
      std::copy_n(score, width, out);
      if (has_tasks) {
        const int32_t task = tokens.task.data<int32_t>()[t];
        for (int64_t e = 0; e < width; ++e) {
          if (task >= 0 && options_.expert_task[static_cast<size_t>(e)] == task)
            out[e] += static_cast<T>(options_.task);
        }
      }
      if (options_.history) {
        const T* success = history_.value.data<T>() + row_of(tokens, t) * width;
        for (int64_t e = 0; e < width; ++e) out[e] *= static_cast<T>(history_factor(0.5 + double{success[e]}));
      }
      if (options_.balance) {
        const T* bias = balance_.value.data<T>();
        for (int64_t e = 0; e < width; ++e) out[e] += bias[e];
      }
    }
  });
}

void SelectionBias::add_history(const TokenFacts& tokens, const Tensor& ids, const Tensor& dweights,
                                std::vector<int64_t>& counts) const {
  counts.resize(num_history_counts(), 0);
  const int64_t num_slots = ids.dim(1);
  const auto half = static_cast<int64_t>(counts.size() / 2);
  with_element_type(dweights, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < ids.numel(); ++i) {
      const int32_t expert = ids.data<int32_t>()[i];
      if (expert < 0) continue;
      const int64_t place = row_of(tokens, i / num_slots) * num_experts_ + expert;
      if (dweights.data<T>()[i] < 0) ++counts[static_cast<size_t>(place)];
      ++counts[static_cast<size_t>(half + place)];
    }
  });
}

void SelectionBias::update_history(std::span<const int64_t> global_counts) {
  if (!options_.history || history_.frozen) return;
  const size_t half = global_counts.size() / 2;
  with_element_type(history_.value, [&]<class T>(std::type_identity<T>) {
    for (size_t i = 0; i < half; ++i) {
      if (global_counts[half + i] == 0) continue;
      const double share = static_cast<double>(global_counts[i]) / static_cast<double>(global_counts[half + i]);
      T& rate = history_.value.data<T>()[i];
      rate += static_cast<T>(kHistoryRate * (share - 0.5 - double{rate}));
    }
  });
  ++history_.version;
}

void SelectionBias::update_balance(std::span<const int64_t> global_counts, double rate) {
  if (!options_.balance || balance_.frozen) return;
  update_selection_bias(global_counts, rate, balance_.value);
  ++balance_.version;
}

void SelectionBias::each_parameter(const ParameterVisitor& visit) {
  if (options_.balance) visit(balance_);
  if (options_.history) visit(history_);
}

void update_selection_bias(std::span<const int64_t> counts, double rate, const Tensor& bias) {
  const auto num_experts = static_cast<int64_t>(counts.size());
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  with_element_type(bias, [&]<class T>(std::type_identity<T>) {
    for (size_t e = 0; e < counts.size(); ++e) {
      // Compared as integers, so that equal loads give exactly zero.
      const int64_t above_mean = counts[e] * num_experts - total;
      if (above_mean < 0) bias.data<T>()[e] += static_cast<T>(rate);
      if (above_mean > 0) bias.data<T>()[e] -= static_cast<T>(rate);
    }
  });
}

}  // namespace cadre
