// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/complexity.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"simple", "medium", "complex", "critical"};

}  // namespace

Complexity complexity_named(std::string_view name) {
  const auto found = std::ranges::find(kNames, name);
  CADRE_CHECK(found != kNames.end(), fmt::format("complexity = {}, allowed: {}", name, fmt::join(kNames, " | ")),
              "the experts that a token of the request visits");
  return static_cast<Complexity>(found - kNames.begin());
}

int64_t experts_for(Complexity complexity, const ComplexityTable& table, int64_t num_experts) {
  return std::min({table.experts[static_cast<size_t>(complexity)], table.most, num_experts});
}

}  // namespace cadre
