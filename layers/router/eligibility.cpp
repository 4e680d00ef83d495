// SPDX-License-Identifier: Apache-2.0
#include "layers/router/eligibility.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "comm/base/check.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// Of the best `summed` scores that are not -infinity.
template <class T>
double group_score(const T* first, int64_t size, int summed, std::vector<double>& best) {
  best.assign(static_cast<size_t>(std::min<int64_t>(summed, size)), kNever);
  for (int64_t i = 0; i < size; ++i) {
    double score = first[i];
    for (double& kept : best) {
      if (score > kept) std::swap(score, kept);
    }
  }
  double sum = 0.0;
  for (const double score : best) sum += score > kNever ? score : 0.0;
  return best.front() > kNever ? sum : kNever;
}

bool holds(const ExpertCondition& condition, const TokenFacts& tokens, int64_t t) {
  const int64_t position = tokens.position_of(t);
  switch (condition.kind) {
    case ExpertCondition::Kind::task: return tokens.task.defined() && tokens.task.data<int32_t>()[t] == condition.value;
    case ExpertCondition::Kind::position_below: return position < condition.value;
    case ExpertCondition::Kind::position_from: return position >= condition.value;
  }
  return true;
}

constexpr std::array<std::string_view, 4> kComplexityNames = {"simple", "medium", "complex", "critical"};

}  // namespace

ExpertRange expert_group(int64_t num_experts, int groups, int g) {
  const int64_t size = num_experts / groups;
  const int64_t larger = num_experts % groups;
  return {g * size + std::min<int64_t>(g, larger), size + (g < larger ? 1 : 0)};
}

void limit_to_groups(const GroupLimit& limit, const Tensor& choice) {
  const int64_t num_experts = choice.dim(1);
  std::vector<double> of_group(static_cast<size_t>(limit.groups));
  std::vector<double> best;
  std::vector<int> order(of_group.size());
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < choice.dim(0); ++t) {
      T* row = choice.data<T>() + t * num_experts;
      for (int g = 0; g < limit.groups; ++g) {
        const auto [first, count] = expert_group(num_experts, limit.groups, g);
        of_group[static_cast<size_t>(g)] = group_score(row + first, count, limit.summed, best);
      }
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return of_group[a] > of_group[b]; });
      for (int place = limit.kept; place < limit.groups; ++place) {
        const auto [first, count] = expert_group(num_experts, limit.groups, order[static_cast<size_t>(place)]);
        std::replace_if(
            row + first, row + first + count, [](T value) { return value == value; }, static_cast<T>(kNever));
      }
    }
  });
}

void limit_to_conditions(const std::vector<ExpertCondition>& conditions, const TokenFacts& tokens,
                         const Tensor& choice) {
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < choice.dim(0); ++t) {
      T* row = choice.data<T>() + t * choice.dim(1);
      for (const ExpertCondition& condition : conditions) {
        if (!holds(condition, tokens, t)) row[condition.expert] = static_cast<T>(kNever);
      }
    }
  });
}

void limit_to_eligible(const EligibilityOptions& options, const TokenFacts& tokens, const Tensor& choice) {
  if (!options.conditions.empty()) limit_to_conditions(options.conditions, tokens, choice);
  if (options.groups.limits()) limit_to_groups(options.groups, choice);
  if (options.nodes.limits()) limit_to_groups(options.nodes, choice);
}

bool is_complexity(std::string_view name) {
  return std::ranges::find(kComplexityNames, name) != kComplexityNames.end();
}

Complexity complexity_named(std::string_view name) {
  const auto found = std::ranges::find(kComplexityNames, name);
  CADRE_CHECK(found != kComplexityNames.end(),
              fmt::format("complexity = {}, allowed: {}", name, fmt::join(kComplexityNames, " | ")),
              "the experts that a token of the request visits");
  return static_cast<Complexity>(found - kComplexityNames.begin());
}

Complexity recognise_complexity(std::string_view text, const TaskOptions& options) {
  constexpr std::ptrdiff_t kLongText = 200;
  std::set<TaskType> tasks;
  for (const TaskMatch& match : recognise_task(text, options).matches) tasks.insert(match.type);
  tasks.erase(TaskType::general);
  // Each character of UTF-8 has one byte that is not 10xxxxxx.
  const auto characters = std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; });
  const size_t steps = std::min<size_t>(tasks.size(), 2) + (characters >= kLongText ? 1 : 0);
  return static_cast<Complexity>(steps);
}

int64_t experts_for(Complexity complexity, const ComplexityTable& table, int64_t num_experts) {
  return std::min({table.experts[static_cast<size_t>(complexity)], table.most, num_experts});
}

}  // namespace cadre
