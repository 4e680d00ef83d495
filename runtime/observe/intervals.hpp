// SPDX-License-Identifier: Apache-2.0
// Sets of time as sorted intervals that neither touch nor overlap: what was computed, what was in flight, and both at
// once. Integer nanoseconds, so that totals are exact.
#pragma once

#include <cstdint>
#include <vector>

namespace cadre {

// [begin, end)
struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Interval&) const = default;
};

class IntervalSet {
 public:
  IntervalSet() = default;
  // The union of intervals in any order; those that are empty or end before they begin hold nothing.
  explicit IntervalSet(std::vector<Interval> intervals);

  const std::vector<Interval>& intervals() const { return intervals_; }
  int64_t total() const;

  bool operator==(const IntervalSet&) const = default;

 private:
  std::vector<Interval> intervals_;
};

IntervalSet united(const IntervalSet& a, const IntervalSet& b);
IntervalSet intersected(const IntervalSet& a, const IntervalSet& b);
IntervalSet without(const IntervalSet& a, const IntervalSet& b);  // what of a is not in b

}  // namespace cadre
