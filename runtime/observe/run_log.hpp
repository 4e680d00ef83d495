// SPDX-License-Identifier: Apache-2.0
// What a run says: one line and one JSON object a step, a progress bar on a terminal, a warning in the end. Rank 0
// only.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "comm/job/poll.hpp"
#include "runtime/observe/metrics_file.hpp"
#include "runtime/observe/step_metrics.hpp"

namespace cadre {

// How far a run is: one line at the bottom of the terminal, redrawn in place. Where stderr is no terminal, or under
// Slurm, where it ends in a file, nothing is ever drawn.
class ProgressBar {
 public:
  // `done_before`: what an earlier run did; the time left is judged without it.
  explicit ProgressBar(int64_t done_before);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws; once done = total the line goes away.
  void update(int64_t done, int64_t total);
  // Takes the line away, so that other text can be written.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  bool enabled_;
  bool drawn_ = false;
  int64_t done_before_;
  Clock::time_point begin_ = Clock::now();
};

// "[######..............]  30% | 0:01:05 elapsed | 0:02:32 left"; fraction in [0, 1].
std::string progress_text(double fraction, int64_t elapsed_seconds, int64_t left_seconds);

struct StepRecord {
  int64_t step = 0;   // 1 for the first
  int64_t steps = 0;  // of the whole run
  GlobalStep global;
  double learning_rate = 0.0;
  double grad_norm = 0.0;
  double step_ms = 0.0;         // of rank 0
  double balance_ms = 0.0;      // of it, what the reduction of the metrics cost
  double save_ms = 0.0;         // of rank 0: what saving took since the step before
  int64_t skipped_steps = 0;    // up to this one, which had no finite loss and gradient
  PollCount polls;              // of rank 0: tests of requests between the tiles of products
  std::vector<int> moe_layers;  // the layer of each row of global.expert_counts
};

// "step  12/300 | loss 2.1034 | norm 0.81 | lr 3.00e-03 | 112.4 ms | 36.4k tok/s | wait 7.1% | experts cv 0.31
//  maxvio 0.74 (layer 3) dead 0 | ranks cv 0.08 max/mean 1.10 | drop 0.00%", in one line.
// `wait` is the share of the step before that the ranks waited, on average; "-" in the first step. After a save "| save
// 12.3 ms" follows it. A model without mixture layers has no part from `experts` on.
std::string step_line(const StepRecord& record);

// Schema: launch/schemas/metrics.schema.json. A number that is not finite becomes null.
std::string step_json(const StepRecord& record);

class RunLog {
 public:
  enum class Metrics { jsonl, jsonl_and_csv };

  // Appends to out/metrics.jsonl, first cut back to steps below or at `resumed_step` (0: a fresh run starts empty) and
  // evaluations below it. A last line that a crash tore is cut off too; other damaged lines stay, with a warning.
  RunLog(const std::filesystem::path& out, int64_t resumed_step, int64_t log_every, Metrics metrics = Metrics::jsonl);

  // A JSON line for every step; a line of text for the first, the last and each `log_every`th. Says so when the file
  // cannot be written, where lines wait until it can, and, once in a while, when balance is bad.
  void step(const StepRecord& record);
  void evaluation(int64_t step, double validation_loss);  // warns when the loss is not finite
  void note(const std::string& line);                     // any other line
  void summary();  // at the end of the run: what the balance alarm has to say, if anything

 private:
  void append(const nlohmann::ordered_json& line);
  void tell_damage(const StepFile& file);
  void tell_trouble(StepFile& file, std::string& told);

  StepFile metrics_;
  std::optional<MetricsCsv> table_;
  std::string metrics_trouble_;  // that was said
  std::string table_trouble_;
  int64_t log_every_;
  ProgressBar bar_;
  BalanceAlarm alarm_;
};

}  // namespace cadre
