// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl and metrics.csv: files with a line for each step, written while a run trains, cut back when it resumes,
// and read back for a report.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cadre {

// A file with a line for each step, in their order, that a resumed run goes on with and that a crash may tear.
class StepFile {
 public:
  // The step that a line is of; none for a line that is damaged.
  using StepOf = std::function<std::optional<int64_t>(const std::string& line)>;

  // A fresh run (resumed_step = 0) starts empty. Else the file is cut back to the lines of steps below or at
  // `resumed_step`; a last line without its end goes too. Damaged lines between those that stay, stay.
  StepFile(std::filesystem::path path, int64_t resumed_step, const StepOf& step_of);
  ~StepFile();
  StepFile(const StepFile&) = delete;
  StepFile& operator=(const StepFile&) = delete;

  // The line reaches the file at once. While nothing can be written, as on a full disk, lines wait in memory for the next
  // append; throws ErrorKind::environment when they are more than 64 MiB. A file that was removed or replaced meanwhile is
  // made anew; where its folder is gone too, throws ErrorKind::environment.
  void append(const std::string& line);

  // Whether append() had to make the file anew since the last call.
  bool take_replaced() { return std::exchange(replaced_, false); }

  // Why lines are waiting; empty when all are in the file.
  const std::string& trouble() const { return trouble_; }
  const std::filesystem::path& path() const { return path_; }
  // Numbers, from 1, of the damaged lines that were found and stayed.
  const std::vector<int64_t>& damaged_lines() const { return damaged_lines_; }

 private:
  bool is_in_place() const;
  void reopen();

  std::filesystem::path path_;
  std::vector<int64_t> damaged_lines_;
  bool replaced_ = false;
  int descriptor_ = -1;
  std::string waiting_;
  std::string trouble_;
};

// metrics.csv: the columns of metrics.jsonl as a table, for spreadsheets. One line of names, then a row for each line of
// the other file. Keys of a layer stand as `layer3.expert_cv`; its counts are one text with blanks between them. What a
// row has not is empty, and so is what is null there.
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

struct StepBalance {
  int64_t step = 0;
  double expert_cv = 0;
  double device_cv = 0;
  double max_vio = 0;  // of the experts
  double drop_rate = 0;
};

struct LayerLoad {
  int layer = 0;
  std::vector<int64_t> counts;  // by expert
};

// What parallel.rebalance did in a step.
struct LoggedMove {
  int64_t step = 0;
  int64_t moved = 0;  // copies of experts; 0: the proposal was refused
  int64_t refused = 0;
  int64_t bytes = 0;
  double stall_ms = 0;
  std::optional<double> load_before = std::nullopt;  // busiest rank / mean in this step, and in the next one
  std::optional<double> load_after = std::nullopt;
  std::optional<double> gain_ms = std::nullopt;  // of a step, expected, and measured later
  std::optional<double> got_ms = std::nullopt;
};

struct LoggedStep {
  StepBalance balance;
  std::vector<LayerLoad> layers;
  std::optional<double> device_max_over_mean = std::nullopt;
  std::optional<LoggedMove> move = std::nullopt;     // without load_after and got_ms
  std::optional<double> move_got_ms = std::nullopt;  // what the last move saved in a step
  std::optional<double> loss = std::nullopt;         // none where it was not finite
  std::optional<double> num_tokens = std::nullopt;   // of the global batch
};

// The steps of a metrics.jsonl, in order; none where there is no file. Lines of evaluations are passed over, as is a last line
// that a crash tore; other damage is an error.
std::vector<LoggedStep> read_metrics(const std::filesystem::path& path);

}  // namespace cadre
