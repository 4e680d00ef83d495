// SPDX-License-Identifier: Apache-2.0
// Traces on disk: one file a rank, RUN_DIR/trace/rank00003.json, which ui.perfetto.dev opens as it is and which reads back
// without loss. Times are those of the clock of rank 0.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "comm/base/trace.hpp"
#include "comm/group/communicator.hpp"
#include "runtime/observe/rank_trace.hpp"

namespace cadre {

// The clocks of different hosts start anywhere and drift. A trace is put on the clock of rank 0 by the offsets that were
// measured when it began and when it ended.
struct ClockOffset {
  int64_t at_ns = 0;      // when, on this rank's clock
  int64_t offset_ns = 0;  // what to add to this rank's clock for that of rank 0
  int64_t error_ns = 0;   // at most; half of the round trip that it was measured with
};

// Of a rank's trace: measured at its begin and at its end.
struct ClockOffsets {
  ClockOffset begin;
  ClockOffset end;

  int64_t error_ns() const;
};

// Collective. Rank 0 asks the others for their time, one after the other; the shortest of several round trips counts. An
// offset within its own error is 0: ranks of one host read one clock. Throws ErrorKind::timeout as every wait does.
ClockOffset measure_clock_offset(const Communicator& world, double deadline_seconds = kDefaultDeadlineSeconds,
                                 const std::function<int64_t()>& clock_ns = trace_clock_ns);

// A time of this rank's clock on that of rank 0; between the two measurements by a straight line, before and after them
// by the nearer one. Never reverses the order of two times.
int64_t on_clock_of_rank_0(const ClockOffsets& offsets, int64_t ns);

// What the recorder holds, on the clock of rank 0. The phase "" becomes "other".
RankTrace to_rank_trace(const TraceRecorder& recorder, const TracedRun& run, int rank, const std::string& host,
                        const ClockOffsets& offsets);

std::filesystem::path trace_path(const std::filesystem::path& run_dir, int rank);

// Makes the folder, too.
void write_trace(const std::filesystem::path& run_dir, const RankTrace& trace);

// Throws on a damaged file: which, and what is wrong with it.
RankTrace read_trace(const std::filesystem::path& path);
// Of all ranks of the run, in order. Files of ranks beyond those of the run, which an earlier run left, are not read.
std::vector<RankTrace> read_traces(const std::filesystem::path& run_dir);

}  // namespace cadre
