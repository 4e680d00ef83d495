// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/metrics_csv.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kValidationLoss = "validation_loss";

using Cell = std::pair<std::string, std::string>;  // column and value

std::string text_of(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_array()) return value.dump();
  std::vector<std::string> parts;
  for (const Json& part : value) parts.push_back(part.dump());
  return fmt::format("{}", fmt::join(parts, " "));
}

std::vector<Cell> cells_of(const Json& line) {
  std::vector<Cell> cells;
  for (const auto& [key, value] : line.items()) {
    if (key != "layers") {
      cells.emplace_back(key, text_of(value));
      continue;
    }
    for (const Json& layer : value) {
      const std::string prefix = fmt::format("layer{}.", layer.at("layer").get<int>());
      for (const auto& [inner, figure] : layer.items()) {
        if (inner != "layer") cells.emplace_back(prefix + inner, text_of(figure));
      }
    }
  }
  return cells;
}

// The names of the columns are of no step, and stay. An evaluation, which alone has no second column, is made again by a
// run that goes on from its step.
std::optional<int64_t> step_of_row(const std::string& line) {
  if (line.starts_with("step,")) return 0;
  int64_t step = 0;
  const char* end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data(), end, step);
  if (error != std::errc() || stop == end || *stop != ',') return std::nullopt;
  return step + (stop + 1 != end && stop[1] == ',' ? 1 : 0);
}

std::vector<std::string> columns_in(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  std::vector<std::string> columns;
  std::istringstream names(line);
  for (std::string name; std::getline(names, name, ',');) columns.push_back(name);
  return columns;
}

}  // namespace

MetricsCsv::MetricsCsv(const std::filesystem::path& path, int64_t resumed_step)
    : file_(path, resumed_step, step_of_row), columns_(columns_in(path)) {}

void MetricsCsv::add(const Json& line) {
  if (columns_.empty() && line.contains(kValidationLoss)) return;  // a step names the columns
  const std::vector<Cell> cells = cells_of(line);
  if (columns_.empty()) {
    for (const Cell& cell : cells) columns_.push_back(cell.first);
    if (std::ranges::find(columns_, kValidationLoss) == columns_.end()) columns_.emplace_back(kValidationLoss);
    file_.append(fmt::format("{}", fmt::join(columns_, ",")));
  }
  const std::map<std::string, std::string> values(cells.begin(), cells.end());
  std::vector<std::string> row;
  for (const std::string& column : columns_) {
    const auto found = values.find(column);
    row.push_back(found == values.end() ? "" : found->second);
  }
  file_.append(fmt::format("{}", fmt::join(row, ",")));
}

}  // namespace cadre
