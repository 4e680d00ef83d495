// SPDX-License-Identifier: Apache-2.0
// The entries of a Chrome trace, in the order and with the nesting that its readers ask for.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre {

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

}  // namespace cadre
