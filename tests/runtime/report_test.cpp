// SPDX-License-Identifier: Apache-2.0
// What a report says: its first line to the letter, its tables, notes and JSON, and what changed between two.
#include "runtime/report/report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/traces.hpp"

namespace cadre::report_test {
namespace {

using test::exchange_traces;
using test::pipeline_traces;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Json = nlohmann::json;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string words_of(const std::string& line) {
  std::istringstream in(line);
  std::string words;
  for (std::string word; in >> word;) words += (words.empty() ? "" : " ") + word;
  return words;
}

// The line whose words begin with `words`.
std::string line_with(const std::string& text, const std::string& words) {
  for (const std::string& line : lines_of(text)) {
    if (words_of(line).starts_with(words)) return words_of(line);
  }
  return "";
}

OverlapReport large_report() {
  OverlapReport report;
  report.run = test::traced_run(1, 2, 2);
  report.num_steps = 2;
  report.first_step = 10;
  report.last_step = 11;
  report.times = {412.34, 371.0, 288.4, 251.9, 36.5, 4.84, 200.0, 150.0, 6.5, 30.0};
  report.load_balance = 0.95;
  report.communication_efficiency = 0.9;
  return report;
}

std::string first_line(const OverlapReport& report) { return lines_of(report_text(report)).front(); }

TEST(Report, FirstLine) {
  OverlapReport report = large_report();
  EXPECT_EQ(first_line(report),
            "step 412.3 ms | speed-up over serial - | exposed 36.5 ms (8.9 % of step; skew 6.5, transfer 30.0)");
  report.speed_up = {.serial = 453.6, .ratio = 1.1, .is_measured = true};
  report.tokens_per_second = 39734.4;
  report.cores = {.number = 2, .are_shared = false};
  EXPECT_EQ(first_line(report),
            "step 412.3 ms | speed-up over serial 1.10 | exposed 36.5 ms (8.9 % of step; skew 6.5, transfer 30.0) | "
            "39734 tokens/s");
  EXPECT_EQ(first_line(analyse_overlap(exchange_traces())),
            "step 1.000 ms | speed-up over serial about 1.10 | exposed 0.260 ms (26.0 % of step; skew 0.050, transfer "
            "0.210)");
}

TEST(Report, FirstLineOfMoreRanksThanCores) {
  OverlapReport report = large_report();
  report.run.num_ranks = 4;
  report.cores = {.number = 2, .are_shared = true};
  EXPECT_THAT(first_line(report), EndsWith(" | 4 ranks on 2 cores"));
  EXPECT_THAT(line_with(report_text(report), "NOTE:"), HasSubstr("4 ranks on 2 cores: ranks take turns"));
  report.run.threads = 3;
  EXPECT_THAT(first_line(report), EndsWith(" | 4 ranks of 3 threads on 2 cores"));
}

TEST(Report, OneRankHasNoCommunication) {
  OverlapReport report = large_report();
  report.run.num_ranks = 1;
  report.times = {.step = 20, .compute = 19, .idle = 1};
  report.tokens_per_second = 500;
  EXPECT_EQ(first_line(report), "step 20.00 ms | no communication | 500 tokens/s");
  EXPECT_EQ(line_with(report_text(report), "whole step:"), "whole step: compute 19.00 ms | idle 1.00");
  EXPECT_THAT(report_text(report), Not(HasSubstr("hidden:")));
}

TEST(Report, SaysWhatItsWordsMean) {
  OverlapReport report = large_report();
  report.times.control = 2;
  EXPECT_EQ(line_with(report_text(report), "whole step:"),
            "whole step: compute 371.0 ms | communication 288.4 | hidden 251.9 (87.3 %) | exposed 36.5 | control 2.0 | "
            "idle 4.8");
  EXPECT_EQ(line_with(report_text(report), "serial:"), "");
  report.speed_up = {.serial = 659.4, .ratio = 1.6, .is_measured = false};
  EXPECT_THAT(line_with(report_text(report), "serial:"),
              StartsWith("serial: 659.4 ms, estimated: compute + communication in flight, one after the other"));
  report.speed_up->is_measured = true;
  EXPECT_EQ(line_with(report_text(report), "serial:"),
            "serial: 659.4 ms, the same steps with their passes run one op after the other");
  EXPECT_THAT(line_with(report_text(report), "skew:"), HasSubstr("of which a faster network saves nothing"));
}

TEST(Report, Tables) {
  const std::string text = report_text(analyse_overlap(exchange_traces()));
  EXPECT_EQ(line_with(text, "step 7;"),
            "step 7; 2 ranks on 1 hosts: pipeline 1, data 2, expert 2; schedule 1f1b, 1 micro-batches; exchange flat; "
            "clocks to 0.0 us");
  // 6,000 B of two ranks, each from the last post on: 320 us; 65/235 of variation.
  EXPECT_EQ(line_with(text, "dispatch"), "dispatch exchange 0.170 0.235 0.300 27.7 23.5 % 0.006 MB 0.019 0.185 21.3 %");
  EXPECT_EQ(line_with(text, "shared experts"), "shared experts compute 0.000 0.050 0.100 100.0 5.0 % - - - -");
  EXPECT_EQ(line_with(text, "1 0.640"), "1 0.640 0.385 0.260 32.5 % -");
  EXPECT_EQ(line_with(text, "0 @ host0"), "0 @ host0 1.000 0.650 0.550 45.5 % 0.100 0.200 0.000 0.050");
  EXPECT_EQ(line_with(text, "1 @ host1 3"), "1 @ host1 3 100.0 % 120.0");
  EXPECT_EQ(line_with(text, "load balance"),
            "load balance 0.917 x communication efficiency 0.780 = parallel efficiency 0.715");
  size_t width = 0;
  bool in_phases = false;
  for (const std::string& line : lines_of(text)) {
    if (line.starts_with("  phase")) in_phases = true;
    if (line.empty()) in_phases = false;
    if (!in_phases) continue;
    if (width == 0) width = line.size();
    EXPECT_EQ(line.size(), width) << line;
  }
  EXPECT_GT(width, 0U);
}

TEST(Report, OfManyRanksThoseThatWaitLongest) {
  OverlapReport report = large_report();
  for (int rank = 0; rank < 100; ++rank) {
    report.ranks.push_back({rank, "node", {.step = 400, .exposed = static_cast<double>(rank * 37 % 100)}});
  }
  const std::string text = report_text(report);
  EXPECT_NE(line_with(text, "27 @ node"), "") << "27 x 37 = 999: 99 ms, the longest";
  EXPECT_NE(line_with(text, "32 @ node"), "") << "84 ms, the sixteenth";
  EXPECT_EQ(line_with(text, "19 @ node"), "") << "3 ms";
  EXPECT_EQ(line_with(text, "and 84 ranks"), "and 84 ranks that wait less");
}

TEST(Report, NotesNameTheOptionToChange) {
  EXPECT_THAT(report_text(large_report()), Not(HasSubstr("NOTE")));
  OverlapReport report = large_report();
  report.times.exposed = 100;
  const auto note_of = [&] { return line_with(report_text(report), "NOTE:"); };
  EXPECT_THAT(note_of(), HasSubstr("parallel.schedule=pair"));
  report.run.schedule = "pair";
  EXPECT_THAT(note_of(), HasSubstr("train.micro_batches"));
  report.run.pipeline = 2;
  EXPECT_THAT(note_of(), HasSubstr("parallel.schedule=dualpipe"));
  report.times.skew = 60;
  EXPECT_THAT(note_of(), HasSubstr("60.0 % of it waiting for late ranks"));
  EXPECT_THAT(note_of(), HasSubstr("model.bias_update_rate"));
  report = large_report();
  report.speed_up = {.serial = 391.7, .ratio = 0.95, .is_measured = true};
  EXPECT_THAT(note_of(), HasSubstr("overlap makes the step slower: 0.95 times"));
  report = large_report();
  report.times.idle = 50;
  EXPECT_THAT(note_of(), HasSubstr("idle for 12.1 %"));
  report = large_report();
  report.load_balance = 0.7;
  EXPECT_THAT(note_of(), HasSubstr("model.aux_loss_alpha"));
  report = large_report();
  report.lost_events = 12;
  EXPECT_THAT(note_of(), HasSubstr("12 events were lost"));
}

TEST(Report, BubbleAndSerialSteps) {
  OverlapReport report = analyse_overlap(pipeline_traces());
  EXPECT_EQ(
      line_with(report_text(report), "bubble:"),
      "bubble: a rank works on no pass for 0.350 ms measured, 0.250 by simulation of the schedule, 0.250 by formula "
      "(R-1)(F+B)");
  // 0.220 and 0.280
  EXPECT_THAT(line_with(report_text(report), "from the first pass"), HasSubstr("idle (0.250) is of the whole step"));
  report.without_overlap =
      SerialSteps{{.step = 0.9, .exposed = 0.4, .exchange = 0.2, .exchange_hidden = 0.05}, 0.6, 1.5};
  EXPECT_EQ(line_with(report_text(report), "without overlap:"),
            "without overlap: passes 0.900 ms instead of 0.600, exposed 0.400, exchange 0.200 (25.0 % hidden); overlap "
            "is 1.50 "
            "times as fast");
}

std::vector<std::string> keys_of(const Json& json) {
  std::vector<std::string> keys;
  for (const auto& item : json.items()) keys.push_back(item.key());
  return keys;
}

TEST(Report, SteadyStateOfOverlappedOps) {
  OverlapReport report = large_report();
  EXPECT_FALSE(report.steady);
  EXPECT_TRUE(report_json(report)["steady"].is_null());
  report.times.step = 400;
  report.steady = {.time = 300, .compute = 240, .exchange = 250, .exchange_hidden = 240};
  EXPECT_EQ(line_with(report_text(report), "steady state"),
            "steady state (75.0 % of step): 300.0 ms | compute 240.0 | exchange 250.0 | hidden 240.0 (96.0 %) | 1.20 "
            "times the longer one");
  const Json json = report_json(report)["steady"];
  EXPECT_THAT(keys_of(json),
              ElementsAre("compute_ms", "exchange_hidden_ms", "exchange_hidden_percent", "exchange_ms", "time_ms"));
  EXPECT_DOUBLE_EQ(json["exchange_hidden_percent"], 96.0);
}

TEST(ReportJson, HasTheSchema) {
  OverlapReport report = analyse_overlap(pipeline_traces(), {}, {{{7, 0.2, 0.1, 1.0, 0.25}, {{1, {4, 2}}}}});
  report.stragglers.push_back({1, "host1", 3, 100.0, 120.0});
  report.without_overlap = SerialSteps{{.step = 0.9}, 0.6, 1.5, 1.0, 1.25};
  const Json json = Json::parse(report_json(report).dump());
  EXPECT_EQ(json["schema"], "cadre.report");
  EXPECT_EQ(json["version"], 2);
  EXPECT_THAT(keys_of(json), ElementsAre("balance", "bubble", "efficiency", "expert_load", "headline", "layers",
                                         "load_over_time", "moves", "notes", "phases", "ranks", "run", "schema",
                                         "steady", "stragglers", "version", "without_overlap"));
  EXPECT_THAT(keys_of(json["run"]),
              ElementsAre("cadre_version", "clock_error_us", "config_hash", "cores", "data", "date", "exchange",
                          "expert", "first_step", "hosts", "last_step", "lost_events", "micro_batches", "model", "mpi",
                          "name", "pipeline", "ranks", "schedule", "seed", "shares_cores", "threads"));
  EXPECT_THAT(
      keys_of(json["headline"]),
      ElementsAre("communication_ms", "compute_ms", "control_ms", "exchange_hidden_percent", "exchange_ms",
                  "exposed_ms", "exposed_percent_of_step", "hidden_ms", "hidden_percent", "idle_ms", "loss", "serial",
                  "serial_step_ms", "skew_ms", "speed_up", "step_ms", "tokens_per_second", "transfer_ms"));
  EXPECT_THAT(keys_of(json["phases"][0]),
              ElementsAre("bytes", "class", "exposed_ms", "hidden_percent", "max_ms", "mean_ms",
                          "message_gigabytes_per_second", "min_ms", "percent_of_step", "phase", "variation_percent"));
  EXPECT_THAT(keys_of(json["layers"][0]), ElementsAre("communication_ms", "compute_ms", "exposed_ms", "hidden_percent",
                                                      "layer", "tokens_max_over_mean"));
  EXPECT_THAT(keys_of(json["ranks"][0]),
              ElementsAre("communication_ms", "compute_ms", "compute_percent_of_step", "control_ms", "hidden_percent",
                          "host", "idle_ms", "rank", "skew_ms", "step_ms", "transfer_ms"));
  EXPECT_THAT(keys_of(json["efficiency"]), ElementsAre("communication", "load_balance", "parallel"));
  EXPECT_THAT(keys_of(json["stragglers"][0]),
              ElementsAre("host", "mean_late_us", "rank", "share_percent", "times_last"));
  EXPECT_THAT(keys_of(json["bubble"]),
              ElementsAre("formula", "formula_idle_ms", "measured_idle_ms", "simulated_idle_ms"));
  EXPECT_THAT(keys_of(json["without_overlap"]),
              ElementsAre("exchange_hidden_percent", "exchange_ms", "exposed_ms", "overlapped_passes_ms", "passes_ms",
                          "speed_up", "step_ms", "step_speed_up"));
  EXPECT_THAT(keys_of(json["balance"][0]), ElementsAre("device_cv", "drop_rate", "expert_cv", "max_vio", "step"));
  EXPECT_THAT(keys_of(json["expert_load"][0]), ElementsAre("counts", "layer"));
  EXPECT_THAT(keys_of(json["load_over_time"][0]), ElementsAre("counts", "first_steps", "layer"));
}

TEST(ReportJson, HasTheValues) {
  const Json json = report_json(analyse_overlap(exchange_traces()));
  EXPECT_DOUBLE_EQ(json["headline"]["hidden_percent"], 100 * 0.125 / 0.385);
  EXPECT_EQ(json["headline"]["serial"], "estimated");
  EXPECT_DOUBLE_EQ(json["headline"]["speed_up"], 1.1);
  EXPECT_DOUBLE_EQ(json["headline"]["skew_ms"], 0.05);
  EXPECT_DOUBLE_EQ(json["headline"]["transfer_ms"], 0.21);
  EXPECT_DOUBLE_EQ(json["headline"]["exposed_percent_of_step"], 26.0);
  EXPECT_DOUBLE_EQ(json["headline"]["exchange_hidden_percent"], 100 * 0.125 / 0.385);
  EXPECT_TRUE(json["bubble"].is_null());
  EXPECT_TRUE(json["without_overlap"].is_null());
  EXPECT_TRUE(json["balance"].is_array() && json["balance"].empty());
  const Json& experts = json["phases"][3];
  EXPECT_EQ(experts["phase"], "experts");
  EXPECT_EQ(experts["class"], "compute");
  EXPECT_TRUE(experts["bytes"].is_null() && experts["exposed_ms"].is_null() && experts["hidden_percent"].is_null());
  EXPECT_DOUBLE_EQ(json["phases"][0]["message_gigabytes_per_second"], 6000 / 320e-6 * 1e-9);
  EXPECT_EQ(json["phases"][2]["class"], "control");
  EXPECT_TRUE(json["layers"][0]["tokens_max_over_mean"].is_null());
  EXPECT_EQ(report_json(analyse_overlap(pipeline_traces()))["headline"]["exchange_hidden_percent"], Json());
}

TEST(ReportJson, HasNameDateModelAndNotes) {
  OverlapReport report = large_report();
  Json json = report_json(report);
  for (const char* key : {"name", "date", "model", "cores", "shares_cores"})
    EXPECT_TRUE(json["run"][key].is_null()) << key;
  EXPECT_TRUE(json["headline"]["loss"].is_null());
  EXPECT_TRUE(json["notes"].is_array() && json["notes"].empty());
  report.name = "overlap";
  report.model = "deepseek: 4 layers";
  report.written_at = 1'000'000'000;
  report.loss = 2.5;
  report.cores = {.number = 1, .are_shared = true};
  json = report_json(report);
  EXPECT_EQ(json["run"]["name"], "overlap");
  EXPECT_EQ(json["run"]["model"], "deepseek: 4 layers");
  EXPECT_EQ(json["run"]["date"], "2001-09-09T01:46:40Z");
  EXPECT_EQ(json["run"]["cores"], 1);
  EXPECT_EQ(json["headline"]["loss"], 2.5);
  ASSERT_EQ(json["notes"].size(), 1U);
  EXPECT_THAT(json["notes"][0].get<std::string>(), StartsWith("2 ranks on 1 cores"));
}

// Compute of 371 ms that both ranks share, an exchange whose ranks lie 10 ms apart.
Json report_with(double step, double experts, double dispatch) {
  OverlapReport report = large_report();
  report.times.step = step;
  report.phases = {
      {.phase = "experts", .mean = experts, .variation_percent = 0},
      {.phase = "dispatch", .phase_class = PhaseClass::exchange, .mean = dispatch, .variation_percent = 10}};
  return report_json(report);
}

TEST(ReportDiff, TellsChangesFromNoise) {
  // Standard errors over 2 ranks of 100 +- 10 and 110 +- 11: two of both together are 21.
  Json diff = diff_json(report_with(400, 300, 100), report_with(380, 290, 110));
  ASSERT_EQ(diff["changes"].size(), 1U) << "dispatch is noise";
  EXPECT_EQ(diff["changes"][0]["phase"], "experts");
  EXPECT_EQ(diff["changes"][0]["before_ms"], 300.0);
  EXPECT_NEAR(diff["changes"][0]["change_percent"].get<double>(), -10.0 / 3, 1e-9);
  EXPECT_EQ(line_with(diff_text(diff), "step ms"), "step ms 400.000 380.000 -5.0 %");
  EXPECT_EQ(line_with(diff_text(diff), "experts"), "experts compute 300.000 290.000 -3.3 % 0.000");
  EXPECT_EQ(line_with(diff_text(diff), "hidden %"), "hidden % 87.3 87.3 +0.0 points");
  EXPECT_EQ(line_with(diff_text(diff), "speed-up"), "speed-up - - -");
  EXPECT_EQ(line_with(diff_text(diff), "transfer"), "transfer 30.000 30.000 +0.0 %");

  diff = diff_json(report_with(400, 300, 100), report_with(380, 298.5, 140));
  ASSERT_EQ(diff["changes"].size(), 1U) << "1.5 ms is below 0.5 % of the step";
  EXPECT_EQ(diff["changes"][0]["phase"], "dispatch");
  EXPECT_NEAR(diff["changes"][0]["noise_ms"].get<double>(), 2 * std::sqrt((100 + 196) / 2.0), 1e-9);
  const Json same = report_with(400, 300, 100);
  EXPECT_THAT(diff_text(diff_json(same, same)), HasSubstr("No phase changed"));
}

TEST(ReportDiff, TellsHowTheRunsDiffer) {
  Json other = report_with(380, 300, 100);
  other["run"]["schedule"] = "pair";
  other["run"]["first_step"] = 99;
  other["run"]["date"] = "2026-11-30T12:00:00Z";
  const std::string text = diff_text(diff_json(report_with(400, 300, 100), other));
  EXPECT_EQ(line_with(text, "schedule"), "schedule \"1f1b\" -> \"pair\"");
  EXPECT_EQ(line_with(text, "first_step"), "");
  EXPECT_EQ(line_with(text, "date"), "");
}

TEST(ReportDiff, RefusesWhatIsNoReport) {
  EXPECT_NO_THROW(check_report(report_with(400, 300, 100), "a.json"));
  test::expect_message(test::message_of([] { check_report(Json::array(), "a.json"); }), {"a.json is no report"});
  Json wrong = report_with(400, 300, 100);
  wrong["version"] = 1;
  test::expect_message(test::message_of([&] { check_report(wrong, "a.json"); }), {"a.json is no report of version 2"});
  wrong = report_with(400, 300, 100);
  wrong["phases"][0].erase("mean_ms");
  test::expect_message(test::message_of([&] { check_report(wrong, "a.json"); }),
                       {"a.json is a damaged report", "mean_ms"});
}

TEST(MetricsFile, GivesTheBalanceOfItsSteps) {
  const test::TemporaryDirectory folder;
  const std::string step =
      R"({"step":3,"expert_cv":0.5,"device_cv":null,"expert_max_vio":1.5,"drop_rate":0.1,"layers":[{"layer":2,"counts":[3,0]}]})";
  test::write_file(folder / "metrics.jsonl", step + "\n{\"step\":3,\"validation_loss\":1.5}\n" + step.substr(0, 20));
  const std::vector<LoggedStep> steps = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].balance.max_vio, 1.5);
  EXPECT_EQ(steps[0].balance.device_cv, 0.0);
  EXPECT_FALSE(steps[0].loss || steps[0].num_tokens);
  EXPECT_EQ(steps[0].layers[0].layer, 2);
  EXPECT_THAT(steps[0].layers[0].counts, ElementsAre(3, 0));
  EXPECT_TRUE(read_metrics(folder / "nowhere.jsonl").empty());
  test::write_file(folder / "metrics.jsonl", "{\"loss\":2.5,\"tokens\":64," + step.substr(1) + "\n");
  EXPECT_EQ(read_metrics(folder / "metrics.jsonl")[0].loss, 2.5);
  EXPECT_EQ(read_metrics(folder / "metrics.jsonl")[0].num_tokens, 64);
  test::write_file(folder / "metrics.jsonl", step + "\n{\"step\":4}\n");
  EXPECT_THAT(test::error_of([&] { read_metrics(folder / "metrics.jsonl"); }),
              HasSubstr("metrics.jsonl:2 is not a step"));
}

}  // namespace
}  // namespace cadre::report_test
