// SPDX-License-Identifier: Apache-2.0
#include "layers/router/bias.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr double kQualityUnit = 0x1p-20;
constexpr double kMostSlots = 0x1p24;  // of which fp32 still counts each
constexpr double kStep = 0.05;         // of a factor, and the most it is off 1

// 5 (1 - g / largest |g|) of slot k.
template <class T>
double quality_of(const T* dweights, const int32_t* ids, int64_t num_slots, int64_t k) {
  double largest = 0.0;
  for (int64_t i = 0; i < num_slots; ++i) {
    if (ids[i] >= 0) largest = std::max(largest, std::abs(double{dweights[i]}));
  }
  return largest > 0.0 ? 5.0 * (1.0 - double{dweights[k]} / largest) : 5.0;
}

}  // namespace

double history_factor(const ExpertRecord& record, const ExpertRecord& mean) {
  const double lead = (record.quality - mean.quality) / 0.4 + (record.success - mean.success) / 0.03;
  return std::clamp(1.0 + kStep * lead / 2.0, 1.0 - kStep, 1.0 + kStep);
}

SelectionBias::SelectionBias(const std::string& prefix, int num_experts, const BiasOptions& options)
    : num_experts_(num_experts),
      options_(options),
      balance_(make_vector(prefix + ".e_score_correction_bias", num_experts, Init::Kind::zeros, Placement::buffer)),
      history_(make_weight({{prefix + ".history", 3 * (options.num_tasks + 1)}}, num_experts, 0.0, Placement::buffer)) {
}

int64_t SelectionBias::row_of(const TokenFacts& tokens, int64_t t) const {
  const int32_t task = tokens.task.defined() ? tokens.task.data<int32_t>()[t] : -1;
  return task >= 0 && task < options_.num_tasks ? task : options_.num_tasks;
}

std::vector<std::vector<ExpertHistory>> SelectionBias::history() const {
  std::vector<std::vector<ExpertHistory>> rows;
  if (!options_.history) return rows;
  const int64_t size = num_rows() * num_experts_;
  for (int64_t row = 0; row < num_rows(); ++row) {
    std::vector<ExpertHistory>& of_task = rows.emplace_back();
    ExpertRecord mean = {.quality = 0.0, .success = 0.0};
    double seen = 0.0;
    for (int64_t at = row * num_experts_; at < (row + 1) * num_experts_; ++at) {
      of_task.push_back({.record = {.quality = 10.0 * (0.5 + element(history_.value, size + at)),
                                    .success = 0.5 + element(history_.value, at)},
                         .slots = static_cast<int64_t>(element(history_.value, 2 * size + at))});
      if (of_task.back().slots == 0) continue;
      mean.quality += of_task.back().record.quality;
      mean.success += of_task.back().record.success;
      seen += 1.0;
    }
    for (ExpertHistory& expert : of_task) {
      if (expert.slots > 0) expert.factor = history_factor(expert.record, {mean.quality / seen, mean.success / seen});
    }
  }
  return rows;
}

std::vector<double> SelectionBias::factors() const {
  std::vector<double> factors;
  for (const auto& of_task : history()) {
    for (const ExpertHistory& expert : of_task) factors.push_back(expert.factor);
  }
  return factors;
}

void SelectionBias::weigh(const TokenFacts& tokens, const Tensor& scores, const Tensor& weighing) const {
  const int64_t width = scores.dim(1);
  const bool has_tasks = options_.task != 0.0 && tokens.task.defined() && !options_.expert_task.empty();
  const std::vector<double> factors = this->factors();
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < scores.dim(0); ++t) {
      const T* score = scores.data<T>() + t * width;
      T* out = weighing.data<T>() + t * width;
      if (out != score) std::copy_n(score, width, out);
      if (has_tasks) {
        const int32_t task = tokens.task.data<int32_t>()[t];
        for (int64_t e = 0; e < width; ++e) {
          if (task >= 0 && options_.expert_task[static_cast<size_t>(e)] == task)
            out[e] += static_cast<T>(options_.task);
        }
      }
      if (factors.empty()) continue;
      const double* factor = factors.data() + row_of(tokens, t) * width;
      for (int64_t e = 0; e < width; ++e) out[e] *= static_cast<T>(factor[e]);
    }
  });
}

void SelectionBias::weigh_grad(const TokenFacts& tokens, const Tensor& dscores) const {
  const std::vector<double> factors = this->factors();
  if (factors.empty()) return;
  with_element_type(dscores, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < dscores.numel(); ++i) {
      const int64_t row = row_of(tokens, i / num_experts_);
      dscores.data<T>()[i] *= static_cast<T>(factors[static_cast<size_t>(row * num_experts_ + i % num_experts_)]);
    }
  });
}

void SelectionBias::apply(const TokenFacts& tokens, const Tensor& scores, const Tensor& choice) const {
  weigh(tokens, scores, choice);
  if (!options_.balance) return;
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    const T* bias = balance_.value.data<T>();
    for (int64_t i = 0; i < choice.numel(); ++i) choice.data<T>()[i] += bias[i % num_experts_];
  });
}

void SelectionBias::add_history(const TokenFacts& tokens, const Tensor& ids, const Tensor& dweights,
                                std::vector<int64_t>& counts) const {
  counts.resize(num_history_counts(), 0);
  const int64_t num_slots = ids.dim(1);
  const auto size = static_cast<int64_t>(counts.size() / 3);
  with_element_type(dweights, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < ids.numel(); ++i) {
      const int32_t expert = ids.data<int32_t>()[i];
      if (expert < 0) continue;
      const int64_t t = i / num_slots;
      const T* of_token = dweights.data<T>() + t * num_slots;
      const double quality = quality_of(of_token, ids.data<int32_t>() + t * num_slots, num_slots, i % num_slots);
      int64_t* count = counts.data() + row_of(tokens, t) * num_experts_ + expert;
      if (dweights.data<T>()[i] < 0) ++count[0];
      count[size] += std::llround(quality / kQualityUnit);
      ++count[2 * size];
    }
  });
}

void SelectionBias::update_history(std::span<const int64_t> global_counts) {
  if (!options_.history || history_.frozen) return;
  const size_t size = global_counts.size() / 3;
  with_element_type(history_.value, [&]<class T>(std::type_identity<T>) {
    T* success = history_.value.data<T>();
    T* quality = success + size;
    T* seen = quality + size;
    for (size_t i = 0; i < size; ++i) {
      const auto slots = static_cast<double>(global_counts[2 * size + i]);
      if (slots == 0.0) continue;
      const double share = static_cast<double>(global_counts[i]) / slots;
      const double mean = static_cast<double>(global_counts[size + i]) * kQualityUnit / slots;
      success[i] += static_cast<T>(kHistoryRate * (share - 0.5 - double{success[i]}));
      quality[i] += static_cast<T>(kHistoryRate * (mean / 10.0 - 0.5 - double{quality[i]}));
      seen[i] = static_cast<T>(std::min(kMostSlots, double{seen[i]} + slots));
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
