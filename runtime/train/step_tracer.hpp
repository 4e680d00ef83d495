// SPDX-License-Identifier: Apache-2.0
// Records the steps that a run wants traced, on all ranks, and writes their traces.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include "comm/base/trace.hpp"
#include "runtime/observe/rank_trace.hpp"
#include "runtime/observe/trace_file.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/schedule/program.hpp"

namespace cadre {

class StepTracer {
 public:
  // The folder of the run receives the files. What traces lie there of earlier runs goes when the first step is traced; a
  // run that was resumed inside the window keeps those of the steps before under another name.
  StepTracer(const RunConfig& config, const Program& program, const Worker& worker, std::string config_hash);

  // Totals are counted always, events are kept in the steps that are traced.
  TraceRecorder& recorder() { return recorder_; }
  bool traces(int64_t step) const;

  // Collective over the world, around each step that is traced. After the last one the traces are written; end() then
  // returns a line that says so, or why they are not: that ends no run. Else it returns an empty line.
  void begin(int64_t step);
  std::string end(int64_t step);
  // Collective. The run stops after `step`: writes what the window has up to here, if that is under way. A line as above.
  std::string stop(int64_t step);
  // Not collective: an error ends the run in `step`, or before it. This rank writes what the window has up to here, without
  // the span of that step, and waits up to 2 s for the files of the other ranks, because the first rank to end ends the job.
  // A line as above.
  std::string stop_alone(int64_t step);

  // Whether the traces of whole steps have been written by all ranks.
  bool is_written() const { return is_written_; }

 private:
  void begin_first(int64_t step);
  std::string write_all(int64_t step);
  RankTrace trace() const;
  void write() const;
  void await_others() const;

  const Worker& worker_;
  std::filesystem::path run_dir_;
  TraceConfig config_;
  int64_t last_step_;
  std::set<int> ranks_;  // that write
  TracedRun run_;
  TraceRecorder recorder_;
  ClockOffsets offsets_;
  int64_t begun_at_ = 0;  // the first step that was traced; 0: none yet
  bool is_over_ = false;
  bool is_written_ = false;
};

// "all", or numbers with commas. Throws on anything else.
std::set<int> ranks_named(const std::string& text, int num_ranks);

}  // namespace cadre
