// SPDX-License-Identifier: Apache-2.0
// The table beside metrics.jsonl: the same figures, after a resume too.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <string>
#include <vector>

#include "runtime/observe/metrics_file.hpp"
#include "tests/support/files.hpp"
#include "tests/support/step_records.hpp"

namespace cadre::metrics_csv_test {
namespace {

using test::example_step;
using test::json_lines;
using test::printed_by;
using test::write_file;
using testing::AllOf;
using testing::HasSubstr;
using Json = nlohmann::ordered_json;

class MetricsCsvTest : public testing::Test {
 protected:
  test::TemporaryDirectory out_;
};

LogConfig with_table() {
  LogConfig config;
  config.every = 1;
  config.metrics = "csv";
  return config;
}

std::vector<std::string> text_lines(const std::filesystem::path& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> cells_of(const std::string& row) {
  std::vector<std::string> cells(1);
  for (const char c : row) {
    if (c == ',') {
      cells.emplace_back();
    } else {
      cells.back() += c;
    }
  }
  return cells;
}

// Each cell of a row is what the JSON of the same step says.
void expect_row(const std::vector<std::string>& columns, const std::vector<std::string>& row, const Json& json) {
  ASSERT_EQ(columns.size(), row.size());
  for (size_t i = 0; i + 1 < columns.size(); ++i) {
    const std::string& column = columns[i];
    const size_t dot = column.find('.');
    const Json* value = nullptr;
    if (dot == std::string::npos) {
      value = &json.at(column);
    } else {
      for (const Json& layer : json.at("layers")) {
        if (fmt::format("layer{}", layer.at("layer").get<int>()) == column.substr(0, dot)) {
          value = &layer.at(column.substr(dot + 1));
        }
      }
    }
    ASSERT_NE(value, nullptr) << column;
    EXPECT_EQ(row[i], value->is_array() ? "4 0 2 2" : value->is_null() ? "" : value->dump()) << column;
    if (column == "layer1.expert_cv") break;  // counts of layer 1 are others
  }
}

TEST_F(MetricsCsvTest, WritesATableWithTheSameColumns) {
  const auto run_with_table = [&](int64_t first, int64_t last) {
    printed_by([&] {
      RunLog log(out_.path(), first - 1, with_table());
      for (int64_t step = first; step <= last; ++step) log.step(example_step(step));
      log.evaluation(last, 1.25);
    });
  };
  run_with_table(1, 4);
  run_with_table(3, 5);  // resumed after step 2
  const std::vector<std::string> lines = text_lines(out_ / "metrics.csv");
  ASSERT_EQ(lines.size(), 7U);  // names, five steps, one evaluation: that of step 4 was cut off with its step
  const std::vector<std::string> columns = cells_of(lines[0]);
  EXPECT_EQ(columns.front(), "step");
  EXPECT_EQ(columns.back(), "validation_loss");
  // 47 values of the step, 11 of each of the two layers, the validation loss.
  EXPECT_EQ(columns.size(), 47U + 2 * 11U + 1);
  expect_row(columns, cells_of(lines[5]), json_lines(out_ / "metrics.jsonl")[4]);
  const std::vector<std::string> evaluation = cells_of(lines[6]);
  EXPECT_EQ(evaluation.front(), "5");
  EXPECT_EQ(evaluation[1], "");
  EXPECT_EQ(evaluation.back(), "1.25");
  EXPECT_EQ(json_lines(out_ / "metrics.jsonl").size(), 6U);
}

TEST_F(MetricsCsvTest, ATableHasTheEvaluationOfTheResumedStepOnce) {
  printed_by([&] {
    RunLog log(out_.path(), 2, with_table());
    log.evaluation(2, 1.0);  // made again before a step has named the columns
    log.step(example_step(3));
    log.evaluation(3, 1.25);
  });
  printed_by([&] {
    RunLog log(out_.path(), 3, with_table());
    log.evaluation(3, 1.25);
  });
  const std::vector<std::string> lines = text_lines(out_ / "metrics.csv");
  ASSERT_EQ(lines.size(), 3U);  // names, step 3, its evaluation
  EXPECT_EQ(cells_of(lines[2]).front(), "3");
  EXPECT_EQ(cells_of(lines[2]).back(), "1.25");
  EXPECT_GT(cells_of(lines[0]).size(), 10U);
}

TEST_F(MetricsCsvTest, ATableThatWasEditedByHandIsNamed) {
  write_file(out_ / "metrics.csv", "step,loss\n1,2\nx,3\n2,1\n");
  const std::string said = printed_by([&] { RunLog(out_.path(), 4, with_table()); });
  EXPECT_THAT(said, AllOf(HasSubstr("metrics.csv"), HasSubstr("the first is line 3")));
  EXPECT_EQ(text_lines(out_ / "metrics.csv").size(), 4U);
}

}  // namespace
}  // namespace cadre::metrics_csv_test
