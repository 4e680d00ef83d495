// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/config_changes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "runtime/config/step_changes.hpp"

namespace cadre {
namespace {

constexpr std::array<std::string_view, 6> kNoEffect = {"out",         "recover", "model.config",
                                                       "checkpoint.", "trace.",  "log."};
constexpr std::array<std::string_view, 11> kNotResult = {
    "train.recompute", "train.steps",     "train.eval_every", "train.eval_batches", "train.max_skipped_steps",
    "train.patience",  "data.validation", "parallel.",        "exchange.",          "compute.threads",
    "compute.device"};

template <size_t N>
bool is_one_of(const std::string& key, const std::array<std::string_view, N>& names) {
  return std::ranges::any_of(
      names, [&](std::string_view name) { return name.ends_with('.') ? key.starts_with(name) : key == name; });
}

std::map<std::string, std::string> later_values(const RunConfig& config) {
  std::map<std::string, std::string> values;
  for (const StepChange& change : config.changes) {
    values[fmt::format("from_step.{}.{}", change.step, change.key)] = value_text(change.value);
  }
  return values;
}

std::string value_or_none(const std::map<std::string, std::string>& values, const std::string& key) {
  const auto found = values.find(key);
  return found == values.end() ? "not given" : found->second;
}

}  // namespace

std::vector<KeyChange> changed_keys(const RunConfig& before, const RunConfig& now) {
  RunConfig one = before;
  RunConfig other = now;
  const std::vector<Section> sections_before = sections_of(one);
  const std::vector<Section> sections_now = sections_of(other);
  std::vector<KeyChange> changes;
  for (size_t s = 0; s < sections_now.size(); ++s) {
    for (size_t f = 0; f < sections_now[s].fields.size(); ++f) {
      const std::string key = key_prefix(sections_now[s]) + sections_now[s].fields[f].name;
      const FieldValue value = value_of(sections_now[s].fields[f]);
      const FieldValue old = value_of(sections_before[s].fields[f]);
      if (key == "compute.products" && value_text(value) == value_text(FieldValue(std::string("auto")))) continue;
      if (value != old && !is_one_of(key, kNoEffect)) changes.push_back({key, value_text(old), value_text(value)});
    }
  }
  const auto later_before = later_values(before);
  const auto later_now = later_values(now);
  std::map<std::string, std::string> all = later_before;
  all.insert(later_now.begin(), later_now.end());
  for (const auto& [key, value] : all) {
    KeyChange change = {key, value_or_none(later_before, key), value_or_none(later_now, key)};
    if (change.before != change.now) changes.push_back(std::move(change));
  }
  return changes;
}

bool decides_result(const std::string& key) { return !is_one_of(key, kNotResult); }

}  // namespace cadre
