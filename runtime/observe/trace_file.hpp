// SPDX-License-Identifier: Apache-2.0
// Traces on disk: one file a rank, RUN_DIR/trace/rank00003.json, which ui.perfetto.dev opens as it is and which reads back
// without loss.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/observe/clock.hpp"
#include "runtime/observe/rank_trace.hpp"

namespace cadre {

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
