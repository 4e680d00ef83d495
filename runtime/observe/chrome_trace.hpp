// SPDX-License-Identifier: Apache-2.0
// Traces in the Trace Event Format of Chrome, which Perfetto reads: a process is a rank; its threads are 0 for steps and
// ops, 1 for computation, 2 for exposed waits; requests in flight, which may overlap, are async events.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre {

// The entries of a Chrome trace, in the order and with the nesting that its readers ask for.
std::string json_text(const std::string& text);  // quoted and escaped

// Collects entries and writes them by time; of those of one time the longest slice first, and slices before what binds
// to them.
class ChromeEvents {
 public:
  explicit ChromeEvents(int64_t base_ns) : base_ns_(base_ns) {}

  // `rest` is the entry from its second member on: "ph", "ts" and "dur" are written here.
  void metadata(const std::string& rest);
  void slice(int64_t begin_ns, int64_t end_ns, const std::string& rest);
  void point(char phase, int64_t ns, const std::string& rest);  // b, e, C, s, f

  // The entries, separated by commas and line ends.
  std::string text();

 private:
  struct Entry {
    std::tuple<int64_t, int, int64_t> order;
    std::string text;
  };
  std::string time(int64_t ns) const;

  int64_t base_ns_;
  std::vector<Entry> entries_;
};

// For each of `events` a lane from 0 on, such that the intervals of one lane lie apart or nest.
std::vector<int> nesting_lanes(const std::vector<const TracedEvent*>& events);
// The same, such that they lie apart.
std::vector<int> disjoint_lanes(const std::vector<const TracedEvent*>& events);

// Times in a file count from this time on, in microseconds: whole hours of the clock of rank 0, so that the files of all
// ranks lie on one axis and a double holds each nanosecond.
int64_t chrome_base_ns(int64_t first_ns);

// What a run was, as traces and reports write it.
nlohmann::json run_json(const TracedRun& run);

std::string chrome_trace(const RankTrace& trace);

// All ranks in one, with arrows from where a rank posted its part of an operation to where the other ranks saw it
// complete; in groups of more than 8 ranks from the last to post only.
std::string merged_chrome_trace(const std::vector<RankTrace>& traces);

// For each trace what Holistic Trace Analysis takes for the trace of a GPU: computation as kernels of stream 7, requests
// in flight as NCCL kernels of streams from 20 on. Steps without overlap are left out.
std::vector<std::string> hta_traces(const std::vector<RankTrace>& traces);

}  // namespace cadre
