// SPDX-License-Identifier: Apache-2.0
// What a run says: lines of text and one JSON object a step, a progress bar on a terminal, a warning in the end. Rank 0
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
#include "runtime/config/run_config.hpp"
#include "runtime/observe/event_file.hpp"
#include "runtime/observe/metrics_file.hpp"
#include "runtime/observe/progress_bar.hpp"
#include "runtime/observe/step_metrics.hpp"

namespace cadre {

// What parallel.rebalance did in a step, or refused after it. Times are of rank 0.
struct Rebalance {
  int64_t moved = 0;      // copies of experts that a rank received, over all ranks
  int64_t refused = 0;    // the same of a proposal that would not have paid
  int64_t bytes = 0;      // moved
  double stall_ms = 0.0;  // that planning and switching took, while the run did nothing else
  // Of the proposal, where there was one: busiest rank / mean before and after, time saved in a step, time of the move.
  std::optional<double> before = std::nullopt, after = std::nullopt, gain_ms = std::nullopt, cost_ms = std::nullopt;
  std::optional<double> took_ms = std::nullopt;  // the step of the move, beyond the median of those before
  std::optional<double> got_ms = std::nullopt;  // that the last move saved in a step: medians of steps before and after
};

struct StepRecord {
  int64_t step = 0;   // 1 for the first
  int64_t steps = 0;  // of the whole run
  GlobalStep global;
  double learning_rate = 0.0;
  double grad_norm = 0.0;
  double step_ms = 0.0;         // of rank 0
  double balance_ms = 0.0;      // of it, what the reduction of the metrics cost
  double save_ms = 0.0;         // of rank 0: what saving took since the step before
  int64_t tokens_so_far = 0;    // that the run has trained on, this step included
  int64_t skipped_steps = 0;    // up to this one, which had no finite loss and gradient
  PollCount polls;              // of rank 0: tests of requests between the tiles of products
  std::vector<int> moe_layers;  // the layer of each row of global.expert_counts
  Rebalance rebalance;
};

// "step  12/300 | loss 2.1034 | norm 0.81 | 112 ms | 36.4k tok/s | wait 7% | cv 0.56 | 0:00:32 left", at most
// kLineWidth columns: parts that do not fit are left out, the share of waiting first. `wait` is the share of the step
// before that the ranks waited, on average; "-" in the first step. A model without mixture layers has no `cv`, that of the load of experts.
// `left`: seconds to the end of the run; negative: not known.
inline constexpr size_t kLineWidth = 100;
std::string step_line(const StepRecord& record, double left = -1.0);

// The same with learning rate, time of the last save, and all balance figures; as long as it becomes.
std::string wide_step_line(const StepRecord& record, double left = -1.0);

// When and by which run a line of metrics.jsonl was written.
struct LineOrigin {
  double time = 0.0;  // Unix time, in seconds
  std::string run;
};

// Schema: launch/schemas/metrics.schema.json. A number that is not finite becomes null.
std::string step_json(const StepRecord& record, const LineOrigin& origin = {});

class RunLog {
 public:
  // Appends to out/metrics.jsonl, first cut back to steps below or at `resumed_step` (0: a fresh run starts empty) and
  // evaluations below it. A last line that a crash tore is cut off too; other damaged lines stay, with a warning. The
  // lines of a run have one name, which a resumed run reads from the file.
  RunLog(const std::filesystem::path& out, int64_t resumed_step, const LogConfig& config);

  // A JSON line for every step; a line of text for the first, the last and those that log.every names. Says so when the
  // file cannot be written, where lines wait until it can, and, once in a while, when balance is bad.
  void step(const StepRecord& record);
  void evaluation(int64_t step, double validation_loss);  // warns when the loss is not finite
  void note(const std::string& line);                     // any other line
  void summary();  // at the end of the run: what the balance alarm has to say, if anything

 private:
  void append(const nlohmann::ordered_json& line);
  bool prints(const StepRecord& record);
  double seconds_left(const StepRecord& record) const;
  void tell_damage(const StepFile& file);
  void tell_trouble(StepFile& file, std::string& told);

  using Clock = std::chrono::steady_clock;

  LogConfig config_;
  std::string run_;
  StepFile metrics_;
  std::optional<MetricsCsv> table_;
  std::optional<EventFile> events_;
  bool told_events_ = false;
  std::string metrics_trouble_;  // that was said
  std::string table_trouble_;
  int64_t done_before_;
  int64_t num_printed_ = 0;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_printed_ = begin_;
  ProgressBar bar_;
  BalanceAlarm alarm_;
};

}  // namespace cadre
