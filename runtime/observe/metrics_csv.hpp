// SPDX-License-Identifier: Apache-2.0
// metrics.csv: the columns of metrics.jsonl as a table, for spreadsheets. One line of names, then a row for each line of
// the other file. Keys of a layer stand as `layer3.expert_cv`; its counts are one text with blanks between them. What a
// row has not is empty, and so is what is null there.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/observe/step_file.hpp"

namespace cadre {

class MetricsCsv {
 public:
  // As StepFile. A resumed run keeps the columns that the file has.
  MetricsCsv(const std::filesystem::path& path, int64_t resumed_step);

  // A step, or an evaluation. The first one names the columns, and is a step.
  void add(const nlohmann::ordered_json& line);

  StepFile& file() { return file_; }

 private:
  StepFile file_;
  std::vector<std::string> columns_;
};

}  // namespace cadre
