// SPDX-License-Identifier: Apache-2.0
// cadre report: what the trace of a run says about overlap, and what changed between two runs.
#include "runtime/report/report.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>
#include <system_error>

#include "comm/base/check.hpp"
#include "launch/command.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/observe/chrome_trace.hpp"
#include "runtime/observe/event_file.hpp"
#include "runtime/observe/trace_file.hpp"
#include "runtime/report/report_page.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

struct ReportArguments {
  std::string run;
  std::string steps;
  std::string json;
  std::string html;
  std::string trace;
  std::string hta;
  std::string tensorboard;
};

struct DiffOptions {
  std::string before;
  std::string after;
  std::string json;
};

// "10:20", "10:", ":20" or "10".
StepRange steps_from(const std::string& text) {
  StepRange range;
  if (text.empty()) return range;
  const auto assign = [&](std::string_view part, int64_t& value) {
    if (part.empty()) return;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    CADRE_CHECK(error == std::errc() && end == part.data() + part.size(),
                fmt::format("--steps {}: {} is not a whole number", text, part), "--steps FIRST:LAST");
  };
  const std::string_view all = text;
  const size_t colon = all.find(':');
  assign(all.substr(0, colon), range.first);
  assign(colon == std::string_view::npos ? all : all.substr(colon + 1), range.last);
  CADRE_CHECK(range.first <= range.last, fmt::format("--steps {}: the first step is after the last", text),
              "--steps FIRST:LAST");
  return range;
}

// "deepseek_v3: 4 layers, hidden 512, 8 experts, top-4"; "" where the folder has no whole run.toml.
std::string model_of(const fs::path& run) {
  const fs::path file = run / "run.toml";
  std::error_code missing;
  if (!fs::exists(file, missing)) return "";
  try {
    const ModelConfig model = load_run_config(file.string(), {}).model;
    std::string text =
        fmt::format("{}: {} layers, hidden {}", model.model_type, model.num_hidden_layers, model.hidden_size);
    if (model.n_routed_experts > 0) {
      text += fmt::format(", {} experts, top-{}", model.n_routed_experts, model.num_experts_per_tok);
    }
    return text;
  } catch (const Error&) {  // of another version, or torn: a report can do without it
    return "";
  }
}

OverlapReport report_of(const fs::path& run, const std::vector<RankTrace>& traces, const StepRange& steps) {
  OverlapReport report = analyse_overlap(traces, steps, read_metrics(run / "metrics.jsonl"));
  std::error_code unknown;
  report.name = fs::weakly_canonical(run, unknown).filename().string();
  report.model = model_of(run);
  return report;
}

// A file for the trace of one rank, a folder with a file a rank for those of several.
void write_hta(const fs::path& target, const std::vector<RankTrace>& traces) {
  const std::vector<std::string> texts = hta_traces(traces);
  if (target.extension() == ".json") {
    CADRE_CHECK(texts.size() == 1,
                fmt::format("--hta {}: {} ranks need a folder, not a file", target.string(), texts.size()),
                "name a folder");
    write_text_file(target, texts.front());
    return;
  }
  std::error_code error;
  fs::create_directories(target, error);
  if (error) {
    throw Error(ErrorKind::environment, fmt::format("cannot make {}: {}", target.string(), error.message()),
                "choose another folder for --hta");
  }
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    write_text_file(target / fmt::format("rank{:05}.json", rank), texts[rank]);
  }
}

// Prints the report of a run, and writes it as JSON and as a page.
void show(const fs::path& run, const std::vector<RankTrace>& traces, const StepRange& steps, const fs::path& json_file,
          const fs::path& page) {
  const OverlapReport report = report_of(run, traces, steps);
  const nlohmann::json json = report_json(report);
  write_text_file(json_file, json.dump(1) + "\n");
  write_text_file(page, report_page(json, traces));
  fmt::print("{}", report_text(report));
  fmt::print("page with the timeline: {}\n", page.string());
}

void run_report(const ReportArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  const fs::path run = options.run;
  if (!options.tensorboard.empty()) {
    fmt::print("{} lines of {} for TensorBoard: tensorboard --logdir {}\n", write_event_file(run, options.tensorboard),
               (run / "metrics.jsonl").string(), options.tensorboard);
    return;
  }
  const std::vector<RankTrace> traces = read_traces(run);
  show(run, traces, steps_from(options.steps), options.json.empty() ? run / "report.json" : fs::path(options.json),
       options.html.empty() ? run / "report.html" : fs::path(options.html));
  if (!options.trace.empty()) write_text_file(options.trace, merged_chrome_trace(traces));
  if (!options.hta.empty()) write_hta(options.hta, traces);
}

// From the traces of a run, or from a report that was written of one.
nlohmann::json any_report(const std::string& from) {
  if (fs::is_regular_file(from)) {
    nlohmann::json json = read_json_file(from);
    check_report(json, from);
    return json;
  }
  return report_json(report_of(from, read_traces(from), {}));
}

void run_report_diff(const DiffOptions& options, const Job& job) {
  if (job.rank() != 0) return;
  const nlohmann::json diff = diff_json(any_report(options.before), any_report(options.after));
  fmt::print("{}", diff_text(diff));
  if (!options.json.empty()) write_text_file(options.json, diff.dump(1) + "\n");
}

Command report_diff_command() {
  const auto options = std::make_shared<DiffOptions>();
  return {
      .name = "diff",
      .summary = "compares two traced runs: changes larger than the noise between ranks",
      .arguments = {{"RUN_A", &options->before, any(), "the folder of a traced run, or a report written with --json"},
                    {"RUN_B", &options->after, any(), "the same for the other run"}},
      .options = {{"json", &options->json, any(), "also write the result to this file, as JSON"}},
      .run = [options](const Job& job) { run_report_diff(*options, job); }};
}

}  // namespace

void show_report(const std::string& run_dir) {
  const fs::path run = run_dir;
  show(run, read_traces(run), {}, run / "report.json", run / "report.html");
}

Command report_command() {
  const auto options = std::make_shared<ReportArguments>();
  return {
      .name = "report",
      .summary = "analyses the trace of a run: hidden and exposed communication, who waited for whom",
      .arguments = {{"RUN_DIR", &options->run, any(), "the folder of a traced run"}},
      .options = {{"steps", &options->steps, any(),
                   "range of steps, FIRST:LAST; default: all that are complete on every rank"},
                  {"json", &options->json, any(), "JSON file to write; default: RUN_DIR/report.json"},
                  {"html", &options->html, any(), "HTML page to write; default: RUN_DIR/report.html"},
                  {"trace", &options->trace, any(),
                   "also merge the traces of all ranks into this file, for ui.perfetto.dev"},
                  {"tensorboard", &options->tensorboard, any(),
                   "instead of the report: write metrics.jsonl of any run to this folder, for TensorBoard"},
                  {"hta", &options->hta, any(), "also write the traces to this folder, for Holistic Trace Analysis"}},
      .more_help = [] { return std::string("To compare two runs: cadre report diff --help\n"); },
      .run = [options](const Job& job) { run_report(*options, job); },
      .parts = {report_diff_command()}};
}

}  // namespace cadre
