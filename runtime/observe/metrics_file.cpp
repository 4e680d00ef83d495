// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/metrics_file.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <string>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

// Numbers that were not finite are null in the file.
double number(const nlohmann::json& json, const char* key) {
  const nlohmann::json& value = json.at(key);
  return value.is_null() ? 0.0 : value.get<double>();
}

LoggedStep step_from(const nlohmann::json& json) {
  LoggedStep step;
  step.balance = {json.at("step").get<int64_t>(), number(json, "expert_cv"), number(json, "device_cv"),
                  number(json, "expert_max_vio"), number(json, "drop_rate")};
  for (const nlohmann::json& layer : json.at("layers")) {
    step.layers.push_back({layer.at("layer").get<int>(), layer.at("counts").get<std::vector<int64_t>>()});
  }
  return step;
}

}  // namespace

std::vector<LoggedStep> read_metrics(const std::filesystem::path& path) {
  std::vector<LoggedStep> steps;
  std::error_code missing;
  if (std::filesystem::exists(path, missing)) expect_regular_file(path, "move it away; a report can do without it");
  std::ifstream file(path, std::ios::binary);
  std::string line;
  for (int64_t number = 1; std::getline(file, line) && !file.eof(); ++number) {
    try {
      const nlohmann::json json = nlohmann::json::parse(line);
      if (json.at("step").is_number_integer() && !json.contains("validation_loss")) steps.push_back(step_from(json));
    } catch (const nlohmann::json::exception& error) {
      throw Error(ErrorKind::input, fmt::format("{}:{} is not a step: {}", path.string(), number, error.what()),
                  "remove that line, or move the file away; a report can do without it");
    }
  }
  return steps;
}

}  // namespace cadre
