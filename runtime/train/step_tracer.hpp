// SPDX-License-Identifier: Apache-2.0
// Records the steps that a run wants traced, on all ranks, and writes their traces.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>

#include "comm/base/trace.hpp"
#include "runtime/observe/clock.hpp"
#include "runtime/observe/rank_trace.hpp"
#include "runtime/schedule/program.hpp"
#include "runtime/train/worker.hpp"

namespace cadre {

class StepTracer {
 public:
  // `run_dir` receives the files. What traces lie there of earlier runs goes when the first step is traced.
  StepTracer(const RunConfig& config, const Program& program, const Worker& worker, std::string config_hash);

  // Totals are counted always, events are kept in the steps that are traced.
  TraceRecorder& recorder() { return recorder_; }
  bool traces(int64_t step) const;

  // Collective over the world, around each step that is traced. After the last one the traces are written.
  void begin();
  void end(int64_t step);

  // Whether traces have been written.
  bool is_written() const { return is_written_; }

 private:
  void begin_first();
  void write() const;

  const Worker& worker_;
  std::filesystem::path run_dir_;
  TraceConfig config_;
  int64_t last_step_;
  std::set<int> ranks_;  // that write
  TracedRun run_;
  TraceRecorder recorder_;
  ClockOffsets offsets_;
  bool has_begun_ = false;
  bool is_written_ = false;
};

// "all", or numbers with commas. Throws on anything else.
std::set<int> ranks_named(const std::string& text, int num_ranks);

}  // namespace cadre
