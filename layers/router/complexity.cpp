// SPDX-License-Identifier: Apache-2.0
#include "layers/router/complexity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr std::array<std::string_view, 4> kComplexityNames = {"simple", "medium", "complex", "critical"};

}  // namespace

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
