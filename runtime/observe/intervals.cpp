// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/intervals.hpp"

#include <algorithm>
#include <utility>

namespace cadre {

IntervalSet::IntervalSet(std::vector<Interval> intervals) : intervals_(std::move(intervals)) {
  std::erase_if(intervals_, [](const Interval& one) { return one.begin >= one.end; });
  std::ranges::sort(intervals_, {}, &Interval::begin);
  size_t kept = 0;
  for (const Interval& next : intervals_) {
    if (kept > 0 && next.begin <= intervals_[kept - 1].end) {
      intervals_[kept - 1].end = std::max(intervals_[kept - 1].end, next.end);
    } else {
      intervals_[kept++] = next;
    }
  }
  intervals_.resize(kept);
}

int64_t IntervalSet::total() const {
  int64_t total = 0;
  for (const Interval& one : intervals_) total += one.end - one.begin;
  return total;
}

IntervalSet united(const IntervalSet& a, const IntervalSet& b) {
  std::vector<Interval> all = a.intervals();
  all.insert(all.end(), b.intervals().begin(), b.intervals().end());
  return IntervalSet(std::move(all));
}

IntervalSet intersected(const IntervalSet& a, const IntervalSet& b) {
  std::vector<Interval> common;
  auto one = a.intervals().begin();
  auto other = b.intervals().begin();
  while (one != a.intervals().end() && other != b.intervals().end()) {
    common.push_back({std::max(one->begin, other->begin), std::min(one->end, other->end)});
    if (one->end < other->end) {
      ++one;
    } else {
      ++other;
    }
  }
  return IntervalSet(std::move(common));
}

IntervalSet without(const IntervalSet& a, const IntervalSet& b) {
  std::vector<Interval> rest;
  auto hole = b.intervals().begin();
  for (Interval one : a.intervals()) {
    while (hole != b.intervals().end() && hole->end <= one.begin) ++hole;
    for (auto next = hole; next != b.intervals().end() && next->begin < one.end; ++next) {
      rest.push_back({one.begin, next->begin});
      one.begin = next->end;
    }
    rest.push_back(one);
  }
  return IntervalSet(std::move(rest));
}

}  // namespace cadre
