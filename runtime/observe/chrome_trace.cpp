// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/chrome_trace.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <optional>

#include "runtime/observe/matching.hpp"
#include "runtime/observe/rank_trace.hpp"

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

namespace {

using Json = nlohmann::json;

constexpr size_t kMostRanksWithAllArrows = 8;

struct Thread {
  int tid;
  const char* name;
};
constexpr Thread kSteps = {0, "steps"};
constexpr Thread kCompute = {1, "compute"};
constexpr Thread kWaits = {2, "exposed wait"};

// Slices that would not nest in their thread go to another with this added. A trace that is whole has none.
constexpr int kNextLane = 10;

Thread thread_of(TraceKind kind) {
  if (kind == TraceKind::compute) return kCompute;
  return kind == TraceKind::wait ? kWaits : kSteps;
}

std::string title_of(const TracedEvent& event) {
  const bool serial = event.phase == "step without overlap";
  if (event.kind == TraceKind::step) return fmt::format("step {}{}", event.step, serial ? " without overlap" : "");
  if (event.kind == TraceKind::op && event.micro_batch >= 0)
    return fmt::format("{} {}", event.phase, event.micro_batch);
  return event.kind == TraceKind::wait ? "wait: " + event.phase : event.phase;
}

std::string arguments_of(const TracedEvent& event, size_t index) {
  std::string text = fmt::format("{{\"i\":{},\"phase\":{}", index, json_text(event.phase));
  const auto add = [&](const char* name, int64_t value, int64_t usual) {
    if (value != usual) text += fmt::format(",\"{}\":{}", name, value);
  };
  add("step", event.step, -1);
  add("micro_batch", event.micro_batch, -1);
  add("layer", event.layer, -1);
  add("bytes", event.bytes, 0);
  return text + "}";
}

// The slices of one rank, each with the thread that it lies in.
struct Slices {
  std::map<size_t, int> tids;      // by event
  std::vector<size_t> activities;  // by begin
};

Slices slices_of(const RankTrace& trace) {
  Slices slices;
  for (const Thread& thread : {kSteps, kCompute, kWaits}) {
    std::vector<size_t> places;
    std::vector<const TracedEvent*> events;
    for (size_t i = 0; i < trace.events.size(); ++i) {
      const TracedEvent& event = trace.events[i];
      if (event.kind == TraceKind::flight || thread_of(event.kind).tid != thread.tid) continue;
      places.push_back(i);
      events.push_back(&event);
      if (thread.tid != kSteps.tid) slices.activities.push_back(i);
    }
    const std::vector<int> lanes = nesting_lanes(events);
    for (size_t k = 0; k < places.size(); ++k) slices.tids[places[k]] = thread.tid + kNextLane * lanes[k];
  }
  std::ranges::sort(slices.activities, {}, [&](size_t i) { return trace.events[i].begin_ns; });
  return slices;
}

void name_threads(const RankTrace& trace, const Slices& slices, ChromeEvents& out) {
  const auto meta = [&](const char* what, int tid, const std::string& arguments) {
    out.metadata(fmt::format(R"("name":"{}","pid":{},"tid":{},"args":{{{}}})", what, trace.rank, tid, arguments));
  };
  meta("process_name", 0, fmt::format("\"name\":{}", json_text(fmt::format("rank {} @ {}", trace.rank, trace.host))));
  meta("process_sort_index", 0, fmt::format("\"sort_index\":{}", trace.rank));
  std::map<int, const char*> names;
  for (const Thread& thread : {kSteps, kCompute, kWaits}) names[thread.tid] = thread.name;
  for (const auto& [event, tid] : slices.tids) names.emplace(tid, thread_of(trace.events[event].kind).name);
  for (const auto& [tid, name] : names) {
    meta("thread_name", tid, fmt::format("\"name\":\"{}\"", name));
    meta("thread_sort_index", tid, fmt::format("\"sort_index\":{}", tid));
  }
}

void add_bytes_in_flight(const RankTrace& trace, ChromeEvents& out) {
  std::map<int64_t, int64_t> changes;
  for (const TracedEvent& event : trace.events) {
    if (event.kind != TraceKind::flight || event.bytes == 0) continue;
    changes[event.begin_ns] += event.bytes;
    changes[event.end_ns] -= event.bytes;
  }
  int64_t bytes = 0;
  for (const auto& [ns, change] : changes) {
    bytes += change;
    out.point('C', ns,
              fmt::format(R"("name":"bytes in flight","pid":{},"tid":0,"args":{{"bytes":{}}})", trace.rank, bytes));
  }
}

void add_rank(const RankTrace& trace, const Slices& slices, ChromeEvents& out) {
  name_threads(trace, slices, out);
  for (size_t i = 0; i < trace.events.size(); ++i) {
    const TracedEvent& event = trace.events[i];
    const std::string common = fmt::format("\"name\":{},\"cat\":\"{}\",\"pid\":{}", json_text(title_of(event)),
                                           name_of(event.kind), trace.rank);
    const std::string arguments = arguments_of(event, i);
    if (event.kind != TraceKind::flight) {
      out.slice(event.begin_ns, event.end_ns,
                fmt::format("{},\"tid\":{},\"args\":{}", common, slices.tids.at(i), arguments));
      continue;
    }
    const uint64_t id = (static_cast<uint64_t>(trace.rank) << 32) + i;
    const std::string flight = fmt::format("{},\"tid\":0,\"id\":\"{:#x}\"", common, id);
    out.point('b', event.begin_ns, fmt::format("{},\"args\":{}", flight, arguments));
    out.point('e', event.end_ns, fmt::format("{},\"args\":{{\"i\":{}}}", flight, i));
  }
  add_bytes_in_flight(trace, out);
}

// The thread of the activity that encloses the time.
std::optional<int> tid_at(const RankTrace& trace, const Slices& slices, int64_t ns) {
  const auto after =
      std::ranges::upper_bound(slices.activities, ns, {}, [&](size_t i) { return trace.events[i].begin_ns; });
  if (after == slices.activities.begin()) return std::nullopt;
  const size_t activity = *std::prev(after);
  if (trace.events[activity].end_ns <= ns) return std::nullopt;
  return slices.tids.at(activity);
}

// Draws arrows between slices; those that would end nowhere or before they begin are left out.
class Arrows {
 public:
  Arrows(const std::vector<RankTrace>& traces, const std::vector<Slices>& slices, ChromeEvents& out)
      : traces_(traces), slices_(slices), out_(out) {}

  void draw(const Operation& operation) {
    const std::vector<EventPlace>& flights = operation.flights;
    if (operation.phase_class == PhaseClass::pipeline) return draw(flights.front(), flights.back());
    const bool all = flights.size() <= kMostRanksWithAllArrows;
    const EventPlace last = std::ranges::max(flights, {}, [&](const EventPlace& at) { return event(at).begin_ns; });
    for (const EventPlace& from : flights) {
      if (!all && from != last) continue;
      for (const EventPlace& to : flights) {
        if (to != from) draw(from, to);
      }
    }
  }

 private:
  const TracedEvent& event(const EventPlace& at) const { return traces_[at.trace].events[at.event]; }

  void draw(const EventPlace& from, const EventPlace& to) {
    const int64_t posted = event(from).begin_ns;
    const int64_t complete = event(to).end_ns;
    const auto from_tid = tid_at(traces_[from.trace], slices_[from.trace], posted);
    const auto to_tid = tid_at(traces_[to.trace], slices_[to.trace], complete);
    if (!from_tid || !to_tid || complete < posted) return;
    const std::string common =
        fmt::format(R"("name":{},"cat":"flow","id":{})", json_text(event(from).phase), ++num_drawn_);
    out_.point('s', posted, fmt::format("{},\"pid\":{},\"tid\":{}", common, traces_[from.trace].rank, *from_tid));
    out_.point('f', complete,
               fmt::format("{},\"bp\":\"e\",\"pid\":{},\"tid\":{}", common, traces_[to.trace].rank, *to_tid));
  }

  const std::vector<RankTrace>& traces_;
  const std::vector<Slices>& slices_;
  ChromeEvents& out_;
  int64_t num_drawn_ = 0;
};

Json rank_json(const RankTrace& trace) {
  return {{"rank", trace.rank},
          {"host", trace.host},
          {"clock_offset_begin_ns", trace.clock_offset_begin_ns},
          {"clock_offset_end_ns", trace.clock_offset_end_ns},
          {"clock_error_ns", trace.clock_error_ns},
          {"lost_events", trace.num_lost},
          {"events", trace.events.size()},
          {"written_at", trace.written_at},
          {"machine", trace.machine},
          {"cores", trace.cores}};
}

std::string file_text(int64_t base_ns, const Json& other_data, ChromeEvents& events) {
  const std::string other = other_data.dump(-1, ' ', false, Json::error_handler_t::replace);
  return fmt::format(
      "{{\"displayTimeUnit\":\"ns\",\"baseTimeNanoseconds\":{},\n\"otherData\":{},\n\"traceEvents\":[\n{}\n]}}\n",
      base_ns, other, events.text());
}

int64_t first_ns(const RankTrace& trace) {
  int64_t first = std::numeric_limits<int64_t>::max();
  for (const TracedEvent& event : trace.events) first = std::min(first, event.begin_ns);
  return trace.events.empty() ? 0 : first;
}

}  // namespace

int64_t chrome_base_ns(int64_t first_ns) {
  constexpr int64_t kHour = int64_t{3600} * 1'000'000'000;
  const int64_t into_hour = (first_ns % kHour + kHour) % kHour;
  return first_ns - into_hour;
}

std::string chrome_trace(const RankTrace& trace) {
  const int64_t base = chrome_base_ns(first_ns(trace));
  ChromeEvents events(base);
  add_rank(trace, slices_of(trace), events);
  Json other = rank_json(trace);
  other["schema"] = kTraceSchema;
  other["version"] = kTraceVersion;
  other["run"] = run_json(trace.run);
  return file_text(base, other, events);
}

std::string merged_chrome_trace(const std::vector<RankTrace>& traces) {
  int64_t first = std::numeric_limits<int64_t>::max();
  for (const RankTrace& trace : traces) first = std::min(first, first_ns(trace));
  const int64_t base = chrome_base_ns(traces.empty() ? 0 : first);
  ChromeEvents events(base);
  Json other = {{"schema", "cadre.merged-trace"}, {"version", kTraceVersion}, {"ranks", Json::array()}};
  std::vector<Slices> slices;
  for (const RankTrace& trace : traces) {
    slices.push_back(slices_of(trace));
    add_rank(trace, slices.back(), events);
    other["run"] = run_json(trace.run);
    other["ranks"].push_back(rank_json(trace));
  }
  Arrows arrows(traces, slices, events);
  for (const Operation& operation : match_flights(traces)) arrows.draw(operation);
  return file_text(base, other, events);
}

nlohmann::json run_json(const TracedRun& run) {
  return {{"cadre_version", run.cadre_version},
          {"mpi", run.mpi},
          {"ranks", run.num_ranks},
          {"hosts", run.num_hosts},
          {"pipeline", run.pipeline},
          {"data", run.data},
          {"expert", run.expert},
          {"schedule", run.schedule},
          {"micro_batches", run.num_micro_batches},
          {"exchange", run.exchange},
          {"threads", run.threads},
          {"seed", run.seed},
          {"config_hash", run.config_hash}};
}

}  // namespace cadre
