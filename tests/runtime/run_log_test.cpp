// SPDX-License-Identifier: Apache-2.0
// The line of a step to the letter, the keys of its JSON, and the file that survives a resume and a crash.
#include "runtime/observe/run_log.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/file_size_limit.hpp"
#include "tests/support/files.hpp"
#include "tests/support/step_records.hpp"

namespace cadre::run_log_test {
namespace {

using test::error_of;
using test::example_step;
using test::json_lines;
using test::printed_by;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Json = nlohmann::ordered_json;

constexpr const char* kFile = "metrics.jsonl";

StepRecord dense_example() {
  StepRecord record = example_step(1);
  record.save_ms = 0.0;
  record.moe_layers.clear();
  record.global.expert_counts.clear();
  record.global.device_step_ms = {0.0, 0.0};
  return record;
}

LogConfig log_every(int64_t steps) {
  LogConfig config;
  config.every = steps;
  return config;
}

std::vector<int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  for (const Json& line : json_lines(path)) steps.push_back(line.at("step").get<int64_t>());
  return steps;
}

class RunLogTest : public testing::Test {
 protected:
  // A run from `first` to `last`, silent, as a process that resumed after first - 1.
  void run(int64_t first, int64_t last) {
    printed_by([&] {
      RunLog log(out_.path(), first - 1, log_every(1));
      for (int64_t step = first; step <= last; ++step) log.step(example_step(step));
    });
  }

  TemporaryDirectory out_;
  std::filesystem::path file_ = out_ / kFile;
};

TEST(StepLine, Golden) {
  EXPECT_EQ(step_line(example_step(), 3752.0),
            "step  12/300 | loss 2.1034 | norm 0.81 | 112 ms | 36.4k tok/s | wait 7% | cv 0.56 | 1:02:32 left");
  EXPECT_EQ(wide_step_line(example_step()),
            "step  12/300 | loss 2.1034 | norm 0.81 | lr 3.00e-03 | 112.4 ms | 36.4k tok/s | wait 7.0% | save 3.5 ms | "
            "experts cv 0.56 maxvio 1.00 (layer 3) dead 1 | ranks cv 0.25 max/mean 1.25 | drop 20.00%");
}

TEST(StepLine, OfTheFirstStepOfADenseModel) {
  EXPECT_EQ(step_line(dense_example()), "step   1/300 | loss 2.1034 | norm 0.81 | 112 ms | 36.4k tok/s | wait -");
  EXPECT_EQ(wide_step_line(dense_example()),
            "step   1/300 | loss 2.1034 | norm 0.81 | lr 3.00e-03 | 112.4 ms | 36.4k tok/s | wait -");
}

// The time left stays, whatever else must go.
TEST(StepLine, FitsIts100Columns) {
  StepRecord record = example_step(1'234'567);
  record.steps = 9'999'999;
  for (const double step_ms : {0.4, 112.4, 123456.7}) {
    for (const double norm : {0.81, 1234.5, 1e9}) {
      record.step_ms = step_ms;
      record.grad_norm = norm;
      const std::string line = step_line(record, 4e6);
      EXPECT_LE(line.size(), kLineWidth) << line;
      EXPECT_THAT(line, AllOf(HasSubstr("loss 2.1034"), HasSubstr("1111:06:40 left")));
    }
  }
}

TEST(StepLine, ShortensNumbers) {
  StepRecord record = example_step();
  record.step_ms = 1000.0;
  record.global.num_tokens = 812;
  EXPECT_THAT(step_line(record), HasSubstr("| 812 tok/s |"));
  record.global.num_tokens = 1'254'000;
  EXPECT_THAT(step_line(record), HasSubstr("| 1.25M tok/s |"));
}

TEST(StepLine, SaysWhatMoved) {
  StepRecord record = example_step();
  record.rebalance = {.moved = 5, .bytes = 1000, .stall_ms = 12.34, .before = 1.625, .after = 1.05, .gain_ms = 7.5};
  EXPECT_THAT(step_line(record), HasSubstr("| moved 5, 1.62 -> 1.05"));
  EXPECT_THAT(wide_step_line(record), HasSubstr("| moved 5, 1.62 -> 1.05 in 12.3 ms |"));
  const Json json = Json::parse(step_json(record));
  EXPECT_EQ(json["moved_experts"], 5);
  EXPECT_EQ(json["moved_bytes"], 1000);
  EXPECT_EQ(json["rebalance_ms"], 12.34);
  EXPECT_EQ(json["move_load_before"], 1.625);
  EXPECT_EQ(json["move_gain_ms"], 7.5);
  EXPECT_TRUE(json["move_took_ms"].is_null());
  EXPECT_TRUE(json["move_got_ms"].is_null());
  record.rebalance = {.refused = 3};
  EXPECT_EQ(step_line(record), step_line(example_step()));
  EXPECT_EQ(Json::parse(step_json(record))["refused_experts"], 3);
}

TEST(StepJson, HasAStableSchema) {
  const Json json = Json::parse(step_json(example_step()));
  std::vector<std::string> keys;
  for (const auto& item : json.items()) keys.push_back(item.key());
  EXPECT_THAT(keys, ElementsAre("step", "loss", "balance_loss", "mtp_loss", "grad_norm", "lr", "step_ms", "balance_ms",
                                "save_ms", "skipped_steps", "polls_per_exchange", "poll_ms", "tokens_per_s", "tokens",
                                "drop_rate", "dropped", "rerouted", "crossing_bytes", "between_hosts_bytes",
                                "device_bytes_min", "device_bytes_max", "device_bytes_mean", "expert_cv",
                                "expert_max_vio", "expert_min", "expert_max", "expert_mean", "expert_entropy",
                                "dead_experts", "device_cv", "device_max_over_mean", "wait_ms_max", "wait_ms_mean",
                                "step_ms_max", "time", "run", "tokens_so_far", "moved_experts", "refused_experts",
                                "moved_bytes", "rebalance_ms", "move_load_before", "move_load_after", "move_gain_ms",
                                "move_cost_ms", "move_took_ms", "move_got_ms", "layers"));
  std::vector<std::string> layer_keys;
  for (const auto& item : json["layers"][1].items()) layer_keys.push_back(item.key());
  EXPECT_THAT(layer_keys, ElementsAre("layer", "expert_cv", "max_vio", "min", "max", "mean", "entropy", "dead",
                                      "drop_rate", "device_cv", "device_max_over_mean", "counts"));
}

TEST(StepJson, HasTheValues) {
  const Json json = Json::parse(step_json(example_step()));
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
  EXPECT_EQ(json["tokens_so_far"], 49152);
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
  StepRecord record = example_step();
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
    RunLog log(out_.path(), 0, log_every(4));
    for (int64_t step = 1; step <= 6; ++step) {
      StepRecord record = example_step(step);
      record.steps = 6;
      log.step(record);
      EXPECT_EQ(steps_of(file_).size(), static_cast<size_t>(step)) << "a line reaches the file at once";
    }
    log.evaluation(6, 1.25);
    log.note("saved");
  });
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 4, 5, 6, 6));
  EXPECT_EQ(json_lines(file_).back().at("validation_loss"), 1.25);
  std::vector<std::string> starts;
  std::istringstream lines(printed);
  for (std::string line; std::getline(lines, line);) starts.push_back(line.substr(0, 8));
  EXPECT_THAT(starts, ElementsAre("step 1/6", "step 4/6", "step 6/6", "step 6 |", "saved"));
}

// JSON has no NaN: the line stays one that others read.
TEST_F(RunLogTest, ALossThatIsNotFiniteIsLoggedAndWarnedOf) {
  const std::string printed = printed_by([&] {
    RunLog log(out_.path(), 0, log_every(100));
    log.evaluation(4, 1.25);
    log.evaluation(6, std::nan(""));
    log.evaluation(8, HUGE_VAL);
  });
  for (const size_t line : {1, 2}) EXPECT_TRUE(json_lines(file_).at(line).at("validation_loss").is_null());
  EXPECT_THAT(printed, AllOf(HasSubstr("step 6 | validation loss nan\n"), HasSubstr("step 8 | validation loss inf\n")));
  EXPECT_THAT(printed, AllOf(HasSubstr("warning: the validation loss of step 6 is not finite"),
                             HasSubstr("warning: the validation loss of step 8"), Not(HasSubstr("loss of step 4"))));
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
  size_t third = 0;  // the end of line 3; later lines are of another time
  for (int line = 0; line < 3; ++line) third = first.find('\n', third) + 1;
  EXPECT_THAT(read_file(file_), StartsWith(first.substr(0, third)));
}

// A checkpoint is older than the evaluation of its step.
TEST_F(RunLogTest, TheEvaluationOfTheResumedStepIsMadeAgain) {
  printed_by([&] {
    RunLog log(out_.path(), 0, log_every(1));
    for (int64_t step = 1; step <= 3; ++step) {
      log.step(example_step(step));
      log.evaluation(step, 1.0);
    }
  });
  run(3, 3);
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 1, 2, 3));
}

// A run keeps its name when it resumes; another run has another one.
TEST_F(RunLogTest, LinesNameTheRunAndTheTime) {
  const auto before = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  run(1, 3);
  run(3, 4);
  const std::vector<Json> lines = json_lines(file_);
  const auto name = lines.at(0).at("run").get<std::string>();
  EXPECT_EQ(name.size(), 16U);
  double last = before - 0.001;  // times have milliseconds
  for (const Json& line : lines) {
    EXPECT_EQ(line.at("run"), name);
    EXPECT_GE(line.at("time").get<double>(), last);
    last = line.at("time").get<double>();
  }
  EXPECT_LT(last, before + 600.0);
  run(1, 1);
  EXPECT_NE(json_lines(file_).at(0).at("run"), name);
}

// Ten lines at the start, then one in five seconds: none of these steps takes so long.
TEST_F(RunLogTest, ByItselfItPrintsTheFirstTenStepsAndTheLast) {
  const std::string printed = printed_by([&] {
    RunLog log(out_.path(), 0, log_every(0));
    for (int64_t step = 1; step <= 300; ++step) log.step(example_step(step));
  });
  for (const char* line : {"step   1/300", "step  10/300", "step 300/300"}) EXPECT_THAT(printed, HasSubstr(line));
  EXPECT_THAT(printed, Not(HasSubstr("step  11/300")));
}

TEST_F(RunLogTest, ResumesWithoutAFile) {
  run(4, 5);
  EXPECT_THAT(steps_of(file_), ElementsAre(4, 5));
}

TEST_F(RunLogTest, CutsATornLastLine) {
  run(1, 3);
  const std::string whole = read_file(file_);
  const std::string torn = step_json(example_step(4));
  for (const size_t length : {size_t{1}, torn.size() / 2, torn.size() - 1}) {
    write_file(file_, whole + torn.substr(0, length));
    run(6, 6);
    EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 6)) << "torn after " << length << " bytes";
  }
}

TEST_F(RunLogTest, ADamagedLineStaysAndIsNamed) {
  for (const char* line : {"{\"step\":", "[1]", "{\"loss\":1.0}", "{\"step\":\"2\"}", "\xff\xfe", ""}) {
    const std::string kept = fmt::format("{{\"step\":1}}\n{0}\n{0}\n{{\"step\":3}}\n", line);
    write_file(file_, kept + fmt::format("{0}\n{{\"step\":5}}\n{0}\n{{\"step\":6}}\n", line));
    const std::string said = printed_by([&] { RunLog(out_.path(), 4, log_every(1)); });
    EXPECT_THAT(said, AllOf(HasSubstr("warning: "), HasSubstr("2 damaged lines of no step, the first is line 2")))
        << line;
    EXPECT_EQ(read_file(file_), kept) << line;
  }
}

TEST_F(RunLogTest, SaysWhyTheFileCannotBeOpened) {
  EXPECT_THAT(error_of([&] { RunLog(out_ / "nowhere", 0, log_every(1)); }),
              AllOf(HasSubstr("nowhere/metrics.jsonl"), HasSubstr("No such file")));
  std::filesystem::create_directory(file_);
  EXPECT_THAT(error_of([&] { RunLog(out_.path(), 0, log_every(1)); }), HasSubstr("Is a directory"));
  EXPECT_THAT(error_of([&] { RunLog(out_.path(), 5, log_every(1)); }), HasSubstr("it is a folder"));
}

TEST_F(RunLogTest, OnAFullDiskLinesWait) {
  constexpr size_t kLimit = size_t{32} << 10;
  write_file(file_, "{\"step\": 1}" + std::string(kLimit, ' ') + "\n");
  const std::string printed = printed_by([&] {
    RunLog log(out_.path(), 1, log_every(1));
    {
      const test::FileSizeLimit full(kLimit);
      log.step(example_step(2));
      log.step(example_step(3));
    }
    EXPECT_THAT(steps_of(file_), ElementsAre(1));
    log.step(example_step(4));
  });
  EXPECT_THAT(steps_of(file_), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(printed, AllOf(HasSubstr("warning: cannot write"), HasSubstr("metrics.jsonl: File too large"),
                             HasSubstr("has all its lines again")));
  EXPECT_EQ(printed.find("warning: cannot"), printed.rfind("warning: cannot")) << "once is enough";
}

TEST_F(RunLogTest, AFileThatIsRemovedIsMadeAnewAndAFolderThatIsRemovedEndsTheRun) {
  const std::string printed = printed_by([&] {
    RunLog log(out_.path(), 0, log_every(1));
    log.step(example_step(1));
    std::filesystem::remove(file_);
    log.step(example_step(2));
    log.step(example_step(3));
    EXPECT_THAT(steps_of(file_), ElementsAre(2, 3));
    write_file(out_ / "other", "");
    std::filesystem::rename(out_ / "other", file_);
    log.step(example_step(4));
    EXPECT_THAT(steps_of(file_), ElementsAre(4));
    std::filesystem::remove_all(out_.path());
    EXPECT_THAT(error_of([&] { log.step(example_step(5)); }),
                AllOf(HasSubstr("the folder " + out_.path().string() + " was removed or renamed"), HasSubstr("hint")));
  });
  const std::string warning = "metrics.jsonl was removed or replaced while the run goes on";
  EXPECT_NE(printed.find(warning), printed.rfind(warning)) << "twice";
}

// Opening it would wait for a reader.
TEST_F(RunLogTest, AFifoIsRefused) {
  ASSERT_EQ(::mkfifo(file_.c_str(), 0600), 0);
  EXPECT_THAT(error_of([&] { StepFile(file_, 0, {}); }), HasSubstr("cannot open"));
  EXPECT_THAT(error_of([&] { StepFile(file_, 3, {}); }), HasSubstr("it is a FIFO"));
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

}  // namespace
}  // namespace cadre::run_log_test
