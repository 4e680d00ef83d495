// SPDX-License-Identifier: Apache-2.0
// Traces in the Trace Event Format of Chrome, which Perfetto reads: a process is a rank; its threads are 0 for steps and
// ops, 1 for computation, 2 for exposed waits; requests in flight, which may overlap, are async events.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre {

// Times in a file count from this time on, in microseconds: whole hours of the clock of rank 0, so that the files of all
// ranks lie on one axis and a double holds each nanosecond.
int64_t chrome_base_ns(int64_t first_ns);

std::string chrome_trace(const RankTrace& trace);

// All ranks in one, with arrows from where a rank posted its part of an operation to where the other ranks saw it
// complete; in groups of more than 8 ranks from the last to post only.
std::string merged_chrome_trace(const std::vector<RankTrace>& traces);

// For each trace what Holistic Trace Analysis takes for the trace of a GPU: computation as kernels of stream 7, requests
// in flight as NCCL kernels of streams from 20 on. Steps without overlap are left out.
std::vector<std::string> hta_traces(const std::vector<RankTrace>& traces);

}  // namespace cadre
