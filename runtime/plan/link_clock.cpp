// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "comm/base/check.hpp"
#include "runtime/plan/rank_clock.hpp"

namespace cadre {

std::vector<ClockSpan> union_of(std::vector<ClockSpan> spans) {
  std::ranges::sort(spans, {}, &ClockSpan::begin);
  std::vector<ClockSpan> all;
  for (const ClockSpan& span : spans) {
    if (span.end <= span.begin) continue;
    if (!all.empty() && span.begin <= all.back().end) {
      all.back().end = std::max(all.back().end, span.end);
    } else {
      all.push_back(span);
    }
  }
  return all;
}

double length_of(const std::vector<ClockSpan>& spans) {
  double length = 0.0;
  for (const ClockSpan& span : spans) length += span.end - span.begin;
  return length;
}

std::vector<ClockSpan> common_of(const std::vector<ClockSpan>& a, const std::vector<ClockSpan>& b) {
  std::vector<ClockSpan> common;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const ClockSpan both = {std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)};
    if (both.end > both.begin) common.push_back(both);
    a[i].end < b[j].end ? ++i : ++j;
  }
  return common;
}

double common_length(const std::vector<ClockSpan>& a, const std::vector<ClockSpan>& b) {
  return length_of(common_of(a, b));
}

double LinkClock::send(double now, double seconds) {
  advance(now);
  return occupy(now, seconds);
}

// A token bucket: a link that was idle for `burst_s` or longer sends as much at once. When it has been sent.
double LinkClock::occupy(double now, double seconds) {
  free_ = std::max(free_, now) + seconds;
  return std::max(now, free_ - burst_s_);
}

int LinkClock::add_bulk(double now, double seconds) {
  advance(now);
  left_.push_back(seconds);
  left_s_ += seconds;
  ends_.push_back(std::numeric_limits<double>::infinity());
  const auto number = static_cast<int>(ends_.size()) - 1;
  advance(now);
  return number;
}

// A piece follows each one that has ended, at that time.
void LinkClock::advance(double now) {
  while (!pieces_.empty() && pieces_.front() <= now) {
    const double ended = pieces_.front();
    pieces_.pop_front();
    begin_piece(ended, now);
  }
  while (pieces_.size() < kPiecesUnderWay && !left_.empty()) begin_piece(now, now);
}

// Nothing else is handed over until `known`: pieces that end before it are one.
void LinkClock::begin_piece(double now, double known) {
  if (left_.empty()) return;
  double& left = left_.front();
  const double room = known + burst_s_ - std::max(free_, now) - piece_s_;
  const double piece = std::max(piece_s_, room);
  const double seconds = piece_s_ > 0.0 ? std::min(left, piece) : left;
  const double end = occupy(now, seconds);
  left -= seconds;
  left_s_ = std::max(0.0, left_s_ - seconds);
  pieces_.push_back(end);
  bulk_spans_.push_back({now, end});
  if (left > 0.0) return;
  ends_[static_cast<size_t>(first_left_++)] = end;
  left_.pop_front();
}

double LinkClock::bulk_end(int number, double now) {
  advance(now);
  const double end = ends_[static_cast<size_t>(number)];
  if (number < first_left_) return end;
  double seconds = 0.0;
  for (int i = first_left_; i <= number; ++i) seconds += left_[static_cast<size_t>(i - first_left_)];
  return std::max(now, std::max(free_, now) + seconds - burst_s_);
}

double LinkClock::busy_until(double now) {
  advance(now);
  return std::max(now, std::max(free_, now) + left_s_ - burst_s_);
}

}  // namespace cadre
