// SPDX-License-Identifier: Apache-2.0
// The line of a step to the letter, the keys of its JSON, and the file that survives a resume and a crash.
#include "runtime/observe/run_log.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/file_size_limit.hpp"
#include "tests/support/files.hpp"

namespace cadre {
namespace {

using test::error_of;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;
using Json = nlohmann::ordered_json;

constexpr const char* kFile = "metrics.jsonl";

// Layers 1 and 3 together have the loads 1 2 3 2 4 0 2 2: mean 2, variance 10/8.
StepRecord example(int64_t step = 12) {
  StepRecord record;
  record.step = step;
  record.steps = 300;
  record.learning_rate = 3e-3;
  record.grad_norm = 0.8125;
  record.save_ms = 3.5;
  record.skipped_steps = 2;
  record.step_ms = 112.4;
  record.moe_layers = {1, 3};
  GlobalStep& global = record.global;
  global.loss = 2.1034;
  global.balance_loss = 0.5;
  global.num_tokens = 4096;
  global.slots_planned = global.slots_received = 16;
  global.slots_dropped = 4;
  global.crossing_bytes = 1000;
  global.between_hosts_bytes = 300;
  global.expert_counts = {{1, 2, 3, 2}, {4, 0, 2, 2}};
  global.layer_dropped = {0, 4};
  global.layer_device_slots = {{4, 4}, {6, 2}};
  global.device_slots = {10, 6};
  global.device_bytes = {700, 300};
  global.device_step_ms = {100.0, 110.0};
  global.device_wait_ms = {10.0, 4.7};
  return record;
}

StepRecord dense_example() {
  StepRecord record = example(1);
  record.save_ms = 0.0;
  record.moe_layers.clear();
  record.global.expert_counts.clear();
  record.global.device_step_ms = {0.0, 0.0};
  return record;
}

std::vector<Json> lines_of(const std::filesystem::path& path) {
  std::vector<Json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::vector<int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  for (const Json& line : lines_of(path)) steps.push_back(line.at("step").get<int64_t>());
  return steps;
}

// What the action prints; an Error fails the test.
template <class Action>
std::string printed_by(Action&& action) {
  testing::internal::CaptureStdout();
  EXPECT_NO_THROW(action());
  return testing::internal::GetCapturedStdout();
}

class RunLogTest : public testing::Test {
 protected:
  // A run from `first` to `last`, silent, as a process that resumed after first - 1.
  void run(int64_t first, int64_t last) {
    printed_by([&] {
      RunLog log(out_.path(), first - 1, 1);
      for (int64_t step = first; step <= last; ++step) log.step(example(step));
    });
  }

  TemporaryDirectory out_;
  std::filesystem::path file_ = out_ / kFile;
};

TEST(StepLine, Golden) {
  EXPECT_EQ(step_line(example()),
            "step  12/300 | loss 2.1034 | norm 0.81 | lr 3.00e-03 | 112.4 ms | 36.4k tok/s | wait 7.0% | save 3.5 ms | "
            "experts cv 0.56 maxvio 1.00 (layer 3) dead 1 | ranks cv 0.25 max/mean 1.25 | drop 20.00%");
}

TEST(StepLine, OfTheFirstStepOfADenseModel) {
  EXPECT_EQ(step_line(dense_example()),
            "step   1/300 | loss 2.1034 | norm 0.81 | lr 3.00e-03 | 112.4 ms | 36.4k tok/s | wait -");
}

TEST(StepLine, ShortensNumbers) {
  StepRecord record = example();
  record.step_ms = 1000.0;
  record.global.num_tokens = 812;
  EXPECT_THAT(step_line(record), HasSubstr("| 812 tok/s |"));
  record.global.num_tokens = 1'254'000;
  EXPECT_THAT(step_line(record), HasSubstr("| 1.25M tok/s |"));
}

TEST(StepJson, HasAStableSchema) {
  const Json json = Json::parse(step_json(example()));
  std::vector<std::string> keys;
  for (const auto& item : json.items()) keys.push_back(item.key());
  EXPECT_THAT(
      keys, ElementsAre("step", "loss", "balance_loss", "mtp_loss", "grad_norm", "lr", "step_ms", "balance_ms",
                        "save_ms", "skipped_steps", "polls_per_exchange", "poll_ms", "tokens_per_s", "tokens",
                        "drop_rate", "dropped", "rerouted", "crossing_bytes", "between_hosts_bytes", "device_bytes_min",
                        "device_bytes_max", "device_bytes_mean", "expert_cv", "expert_max_vio", "expert_min",
                        "expert_max", "expert_mean", "expert_entropy", "dead_experts", "device_cv",
                        "device_max_over_mean", "wait_ms_max", "wait_ms_mean", "step_ms_max", "layers"));
  std::vector<std::string> layer_keys;
  for (const auto& item : json["layers"][1].items()) layer_keys.push_back(item.key());
  EXPECT_THAT(layer_keys, ElementsAre("layer", "expert_cv", "max_vio", "min", "max", "mean", "entropy", "dead",
                                      "drop_rate", "device_cv", "device_max_over_mean", "counts"));
}

TEST(StepJson, HasTheValues) {
  const Json json = Json::parse(step_json(example()));
  EXPECT_EQ(json["step"], 12);
  EXPECT_EQ(json["loss"], 2.1034);
  EXPECT_EQ(json["balance_loss"], 0.5);
  EXPECT_EQ(json["grad_norm"], 0.8125);
  EXPECT_EQ(json["lr"], 3e-3);
  EXPECT_DOUBLE_EQ(json["tokens_per_s"], 4096 / 0.1124);
  EXPECT_EQ(json["tokens"], 4096);
  EXPECT_EQ(json["drop_rate"], 0.2);
  EXPECT_EQ(json["dropped"], 4);
  EXPECT_EQ(json["crossing_bytes"], 1000);
  EXPECT_EQ(json["between_hosts_bytes"], 300);
  EXPECT_EQ(json["device_bytes_min"], 300);
  EXPECT_EQ(json["device_bytes_max"], 700);
  EXPECT_EQ(json["device_bytes_mean"], 500.0);
  EXPECT_EQ(json["expert_min"], 0);
  EXPECT_EQ(json["expert_max"], 4);
  EXPECT_EQ(json["expert_max_vio"], 1.0);
  EXPECT_EQ(json["expert_mean"], 2.0);
  EXPECT_EQ(json["dead_experts"], 1);
  EXPECT_EQ(json["device_cv"], 0.25);
  EXPECT_EQ(json["device_max_over_mean"], 1.25);
  EXPECT_EQ(json["wait_ms_max"], 10.0);
  EXPECT_DOUBLE_EQ(json["wait_ms_mean"], 7.35);
  EXPECT_EQ(json["step_ms_max"], 110.0);
  EXPECT_EQ(json["save_ms"], 3.5);
  EXPECT_EQ(json["skipped_steps"], 2);
  EXPECT_EQ(json["layers"][1]["layer"], 3);
  EXPECT_EQ(json["layers"][1]["dead"], 1);
  EXPECT_EQ(json["layers"][1]["max_vio"], 1.0);
  EXPECT_EQ(json["layers"][1]["min"], 0);
  EXPECT_EQ(json["layers"][1]["max"], 4);
  EXPECT_EQ(json["layers"][1]["mean"], 2.0);
  EXPECT_EQ(json["layers"][0]["drop_rate"], 0.0);
  EXPECT_EQ(json["layers"][1]["drop_rate"], 4.0 / 12.0);
  EXPECT_EQ(json["layers"][1]["device_cv"], 0.5);
  EXPECT_EQ(json["layers"][1]["device_max_over_mean"], 1.5);
  EXPECT_EQ(json["layers"][1]["counts"], (std::vector<int64_t>{4, 0, 2, 2}));
}

TEST(StepJson, StaysJsonWhenNumbersAreNotFinite) {
  StepRecord record = example();
  record.global.loss = std::numeric_limits<double>::quiet_NaN();
  record.grad_norm = std::numeric_limits<double>::infinity();
  record.step_ms = 0.0;
  const Json json = Json::parse(step_json(record));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
  EXPECT_TRUE(json["tokens_per_s"].is_null());
}

TEST_F(RunLogTest, WritesEveryStepAndPrintsSome) {
  const std::string printed = printed_by([&] {
    RunLog log(out_.path(), 0, 4);
    for (int64_t step = 1; step <= 6; ++step) {
      StepRecord record = example(step);
      record.steps = 6;
      log.step(record);
      EXPECT_EQ(steps_of(file_).size(), static_cast<size_t>(step)) << "a line reaches the file at once";
    }
    log.evaluation(6, 1.25);
    log.note("saved");
  });
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 4, 5, 6, 6));
  EXPECT_EQ(lines_of(file_).back().dump(), R"({"step":6,"validation_loss":1.25})");
  std::vector<std::string> starts;
  std::istringstream lines(printed);
  for (std::string line; std::getline(lines, line);) starts.push_back(line.substr(0, 8));
  EXPECT_THAT(starts, ElementsAre("step 1/6", "step 4/6", "step 6/6", "step 6 |", "saved"));
}

TEST_F(RunLogTest, AFreshRunStartsEmpty) {
  run(1, 5);
  run(1, 2);
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 2));
}

TEST_F(RunLogTest, AResumedRunCutsBackAndAppends) {
  run(1, 5);
  const std::string first = read_file(file_);
  run(4, 7);
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(read_file(file_), StartsWith(first));
}

// A checkpoint is older than the evaluation of its step.
TEST_F(RunLogTest, TheEvaluationOfTheResumedStepIsMadeAgain) {
  printed_by([&] {
    RunLog log(out_.path(), 0, 1);
    for (int64_t step = 1; step <= 3; ++step) {
      log.step(example(step));
      log.evaluation(step, 1.0);
    }
  });
  run(3, 3);
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 1, 2, 3));
}

TEST_F(RunLogTest, ResumesWithoutAFile) {
  run(4, 5);
  EXPECT_THAT(steps_of(file_), ElementsAre(4, 5));
}

TEST_F(RunLogTest, CutsATornLastLine) {
  run(1, 3);
  const std::string whole = read_file(file_);
  const std::string torn = step_json(example(4));
  for (const size_t length : {size_t{1}, torn.size() / 2, torn.size() - 1}) {
    write_file(file_, whole + torn.substr(0, length));
    run(6, 6);
    EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 6)) << "torn after " << length << " bytes";
  }
}

TEST_F(RunLogTest, RefusesADamagedLine) {
  for (const char* line : {"{\"step\":", "[1]", "{\"loss\":1.0}", "{\"step\":\"2\"}"}) {
    write_file(file_, fmt::format("{{\"step\":1}}\n{}\n{{\"step\":3}}\n", line));
    EXPECT_THAT(error_of([&] { RunLog(out_.path(), 4, 1); }),
                AllOf(HasSubstr("metrics.jsonl:2 is not"), HasSubstr("move the file")))
        << line;
  }
}

TEST_F(RunLogTest, SaysWhyTheFileCannotBeOpened) {
  EXPECT_THAT(error_of([&] { RunLog(out_ / "nowhere", 0, 1); }),
              AllOf(HasSubstr("nowhere/metrics.jsonl"), HasSubstr("No such file")));
  std::filesystem::create_directory(file_);
  EXPECT_THAT(error_of([&] { RunLog(out_.path(), 0, 1); }), HasSubstr("Is a directory"));
  EXPECT_THAT(error_of([&] { RunLog(out_.path(), 5, 1); }), HasSubstr("Is a directory"));
}

TEST_F(RunLogTest, OnAFullDiskLinesWait) {
  constexpr size_t kLimit = size_t{32} << 10;
  write_file(file_, "{\"step\": 1}" + std::string(kLimit, ' ') + "\n");
  const std::string printed = printed_by([&] {
    RunLog log(out_.path(), 1, 1);
    {
      const test::FileSizeLimit full(kLimit);
      log.step(example(2));
      log.step(example(3));
    }
    EXPECT_THAT(steps_of(file_), ElementsAre(1));
    log.step(example(4));
  });
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(printed, AllOf(HasSubstr("warning: cannot write"), HasSubstr("metrics.jsonl: File too large"),
                             HasSubstr("has all its lines again")));
  EXPECT_EQ(printed.find("warning: cannot"), printed.rfind("warning: cannot")) << "once is enough";
}

TEST_F(RunLogTest, LinesDoNotWaitForEver) {
  std::filesystem::create_symlink("/dev/full", file_);
  StepFile file(file_, 0, {});
  const std::string line(1 << 20, 'x');
  EXPECT_THAT(error_of([&] {
                for (int i = 0; i < 100; ++i) file.append(line);
              }),
              AllOf(HasSubstr("cannot write"), HasSubstr(kFile), HasSubstr("No space left"), HasSubstr("quota")));
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
    EXPECT_EQ(row[i], value->is_array() ? "4 0 2 2" : value->dump()) << column;
    if (column == "layer1.expert_cv") break;  // counts of layer 1 are others
  }
}

TEST_F(RunLogTest, WritesATableWithTheSameColumns) {
  const auto run_with_table = [&](int64_t first, int64_t last) {
    printed_by([&] {
      RunLog log(out_.path(), first - 1, 1, RunLog::Metrics::jsonl_and_csv);
      for (int64_t step = first; step <= last; ++step) log.step(example(step));
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
  // 30 figures of the step, 11 of each of the two layers, the validation loss.
  EXPECT_EQ(columns.size(), 34U + 2 * 11U + 1);
  expect_row(columns, cells_of(lines[5]), lines_of(file_)[4]);
  const std::vector<std::string> evaluation = cells_of(lines[6]);
  EXPECT_EQ(evaluation.front(), "5");
  EXPECT_EQ(evaluation[1], "");
  EXPECT_EQ(evaluation.back(), "1.25");
  EXPECT_EQ(lines_of(file_).size(), 6U);
}

TEST_F(RunLogTest, ATableHasTheEvaluationOfTheResumedStepOnce) {
  printed_by([&] {
    RunLog log(out_.path(), 2, 1, RunLog::Metrics::jsonl_and_csv);
    log.evaluation(2, 1.0);  // made again before a step has named the columns
    log.step(example(3));
    log.evaluation(3, 1.25);
  });
  printed_by([&] {
    RunLog log(out_.path(), 3, 1, RunLog::Metrics::jsonl_and_csv);
    log.evaluation(3, 1.25);
  });
  const std::vector<std::string> lines = text_lines(out_ / "metrics.csv");
  ASSERT_EQ(lines.size(), 3U);  // names, step 3, its evaluation
  EXPECT_EQ(cells_of(lines[2]).front(), "3");
  EXPECT_EQ(cells_of(lines[2]).back(), "1.25");
  EXPECT_GT(cells_of(lines[0]).size(), 10U);
}

TEST_F(RunLogTest, ATableThatWasEditedByHandIsNamed) {
  write_file(out_ / "metrics.csv", "step,loss\n1,2\nx,3\n");
  EXPECT_THAT(error_of([&] { RunLog(out_.path(), 4, 1, RunLog::Metrics::jsonl_and_csv); }),
              AllOf(HasSubstr("metrics.csv:3"), HasSubstr("does not begin with a step")));
}

// Alarms while the run goes on: one at the end of the first bad window, then silence for ten windows.
TEST(BalanceAlarm, NamesTheOptionWhileTheRunGoesOn) {
  BalanceAlarm alarm;
  GlobalStep even;
  even.expert_counts = {{2, 2}};
  even.layer_dropped = {0};
  even.device_slots = {2, 2};
  even.slots_planned = 4;
  GlobalStep bad = even;
  bad.expert_counts = {{9, 1, 0, 0}};  // MaxVio 2.6
  bad.device_slots = {9, 1};           // max / mean 1.8
  bad.slots_planned = 10;
  bad.slots_dropped = 10;
  int64_t step = 0;
  std::vector<std::string> lines;
  const auto window_of = [&](const GlobalStep& global) {
    lines.clear();
    for (int64_t i = 0; i < BalanceAlarm::kWindow; ++i) {
      const std::vector<std::string> more = alarm.add(++step, global);
      EXPECT_TRUE(more.empty() || i + 1 == BalanceAlarm::kWindow);
      lines.insert(lines.end(), more.begin(), more.end());
    }
  };
  window_of(even);
  EXPECT_TRUE(lines.empty());
  window_of(bad);
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_THAT(lines[0], AllOf(StartsWith("ALARM: steps 51 to 100: "), HasSubstr("maxvio 2.60 (limit 1.00)"),
                              HasSubstr("model.aux_loss_alpha")));
  EXPECT_THAT(lines[1], AllOf(HasSubstr("max/mean 1.80"), HasSubstr("parallel.expert")));
  EXPECT_THAT(lines[2], AllOf(HasSubstr("50.0 % of the slots were dropped"), HasSubstr("capacity_factor")));
  for (int64_t window = 0; window < BalanceAlarm::kQuietWindows; ++window) {
    window_of(bad);
    EXPECT_TRUE(lines.empty()) << window;
  }
  window_of(bad);
  EXPECT_EQ(lines.size(), 3U);
}

std::string summary_of(const std::filesystem::path& out, const std::vector<std::vector<int64_t>>& counts) {
  std::optional<RunLog> log;
  printed_by([&] {
    log.emplace(out, 0, 1);
    for (int64_t step = 1; step <= 2; ++step) {
      StepRecord record = example(step);
      record.global.expert_counts = counts;
      record.global.layer_dropped.assign(counts.size(), 0);
      record.global.layer_device_slots.assign(counts.size(), {8, 8});
      log->step(record);
    }
  });
  return printed_by([&] { log->summary(); });
}

TEST_F(RunLogTest, TheSummaryIsSilentWhenExpertsAreEven) {
  EXPECT_EQ(summary_of(out_.path(), {{2, 2, 2, 2}, {4, 2, 1, 1}}), "");
  EXPECT_EQ(summary_of(out_.path(), {}), "");
}

TEST_F(RunLogTest, TheSummaryNamesTheOptionToChange) {
  const std::string line = summary_of(out_.path(), {{2, 2, 2, 2}, {5, 1, 1, 1}});
  EXPECT_THAT(line, AllOf(StartsWith("NOTE: "), HasSubstr("over 2 steps the average maxvio was 1.50"),
                          HasSubstr("model.aux_loss_alpha"), HasSubstr("model.bias_update_rate")));
  EXPECT_EQ(std::ranges::count(line, '\n'), 1);
  // The busiest has twice the mean, which is still allowed; two dead experts a step are not.
  EXPECT_THAT(summary_of(out_.path(), {{4, 4, 0, 0}}), HasSubstr("2.0 experts a step had no token"));
}

}  // namespace
}  // namespace cadre
