// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/data_mixture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "comm/base/check.hpp"
#include "layers/router/task.hpp"

namespace cadre {
namespace {

constexpr int64_t kMostWeight = 1'000'000;
constexpr const char* kDataMixtureHint = "example: CODING:2:data/code,MATH:1:data/math; NONE for texts without a task";

MixtureEntry entry_of(const std::string& word) {
  const size_t first = word.find(':');
  const size_t second = first == std::string::npos ? first : word.find(':', first + 1);
  CADRE_CHECK(second != std::string::npos && second + 1 < word.size(),
              fmt::format("data.mixture: \"{}\", allowed: TASK:WEIGHT:PATH", word), kDataMixtureHint);
  MixtureEntry entry;
  const std::string task = word.substr(0, first);
  if (task != "NONE" && task != "none") entry.task = static_cast<int32_t>(task_type_named(task, "data.mixture"));
  const char* end = word.data() + second;
  const auto [rest, error] = std::from_chars(word.data() + first + 1, end, entry.weight);
  CADRE_CHECK(error == std::errc() && rest == end && entry.weight >= 1 && entry.weight <= kMostWeight,
              fmt::format("data.mixture: weight \"{}\", allowed: integer in [1, {}]",
                          word.substr(first + 1, second - first - 1), kMostWeight),
              kDataMixtureHint);
  entry.path = word.substr(second + 1);
  return entry;
}

}  // namespace

std::vector<MixtureEntry> mixture_entries(const DataConfig& config) {
  if (config.mixture.empty()) return {{.path = config.path}};
  CADRE_CHECK(config.path.empty(),
              fmt::format("data.path = {} with data.mixture = {}, allowed: one of them", config.path, config.mixture),
              "data.path=\"\" or data.mixture=\"\" on the command line removes one");
  std::vector<MixtureEntry> entries;
  for (const std::string& word : words_of(config.mixture)) entries.push_back(entry_of(word));
  CADRE_CHECK(!entries.empty(), fmt::format("data.mixture = \"{}\", allowed: TASK:WEIGHT:PATH", config.mixture),
              kDataMixtureHint);
  return entries;
}

}  // namespace cadre
