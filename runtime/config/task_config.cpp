// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/task_config.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

std::vector<TaskType> types_of(const std::string& list, const char* key) {
  std::vector<TaskType> types;
  for (const std::string& word : words_of(list)) types.push_back(task_type_named(word, key));
  return types;
}

}  // namespace

TaskOptions task_options(const TaskConfig& config) {
  TaskOptions options;
  options.keywords = {words_of(config.reasoning), words_of(config.coding), words_of(config.math),
                      words_of(config.general), words_of(config.multimodal)};
  options.priority = types_of(config.priority, "task.priority");
  std::vector<TaskType> sorted = options.priority;
  std::ranges::sort(sorted);
  CADRE_CHECK(sorted.size() == kNumTaskTypes && std::ranges::adjacent_find(sorted) == sorted.end(),
              fmt::format("task.priority = {}, allowed: each task once", config.priority),
              fmt::format("the default is {}", kTaskPriority));
  return options;
}

ComplexityTable complexity_table(const TaskConfig& config) {
  return {.experts = {config.k_simple, config.k_medium, config.k_complex, config.k_critical}, .most = config.k_max};
}

}  // namespace cadre
