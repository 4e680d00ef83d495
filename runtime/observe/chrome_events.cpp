// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/chrome_events.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <numeric>

namespace cadre {
namespace {

// Nanoseconds as microseconds, exactly; not below 0.
std::string microseconds(int64_t ns) { return fmt::format("{}.{:03}", ns / 1000, ns % 1000); }

// Of entries of one time.
enum Order { kMetadata, kSlice, kAsyncBegin, kAsyncEnd, kCounter, kArrow };

Order order_of(char phase) {
  switch (phase) {
    case 'b': return kAsyncBegin;
    case 'e': return kAsyncEnd;
    case 'C': return kCounter;
    default: return kArrow;
  }
}

// `fits` says whether an event may go on top of one that is still open in the lane.
template <class Fits>
std::vector<int> lanes_of(const std::vector<const TracedEvent*>& events, Fits&& fits) {
  std::vector<size_t> order(events.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return std::tuple(events[i]->begin_ns, -events[i]->end_ns); });
  std::vector<int> lanes(events.size());
  std::vector<std::vector<int64_t>> open;  // of each lane: the ends of the events that are open, the innermost last
  for (const size_t i : order) {
    size_t lane = 0;
    for (;; ++lane) {
      if (lane == open.size()) open.emplace_back();
      std::vector<int64_t>& ends = open[lane];
      while (!ends.empty() && ends.back() <= events[i]->begin_ns) ends.pop_back();
      if (ends.empty() || fits(*events[i], ends.back())) break;
    }
    open[lane].push_back(events[i]->end_ns);
    lanes[i] = static_cast<int>(lane);
  }
  return lanes;
}

}  // namespace

std::string json_text(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string ChromeEvents::time(int64_t ns) const { return microseconds(ns - base_ns_); }

void ChromeEvents::metadata(const std::string& rest) {
  entries_.push_back({{base_ns_, kMetadata, 0}, fmt::format("{{\"ph\":\"M\",{}}}", rest)});
}

void ChromeEvents::slice(int64_t begin_ns, int64_t end_ns, const std::string& rest) {
  entries_.push_back(
      {{begin_ns, kSlice, -end_ns},
       fmt::format("{{\"ph\":\"X\",\"ts\":{},\"dur\":{},{}}}", time(begin_ns), microseconds(end_ns - begin_ns), rest)});
}

void ChromeEvents::point(char phase, int64_t ns, const std::string& rest) {
  entries_.push_back({{ns, order_of(phase), 0}, fmt::format("{{\"ph\":\"{}\",\"ts\":{},{}}}", phase, time(ns), rest)});
}

std::string ChromeEvents::text() {
  std::ranges::stable_sort(entries_, {}, &Entry::order);
  size_t size = 0;
  for (const Entry& entry : entries_) size += entry.text.size() + 2;
  std::string text;
  text.reserve(size);
  for (const Entry& entry : entries_) {
    if (!text.empty()) text += ",\n";
    text += entry.text;
  }
  return text;
}

std::vector<int> nesting_lanes(const std::vector<const TracedEvent*>& events) {
  return lanes_of(events, [](const TracedEvent& event, int64_t open_end) { return event.end_ns <= open_end; });
}

std::vector<int> disjoint_lanes(const std::vector<const TracedEvent*>& events) {
  return lanes_of(events, [](const TracedEvent& /*event*/, int64_t /*open_end*/) { return false; });
}

}  // namespace cadre
