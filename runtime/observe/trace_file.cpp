// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/trace_file.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <span>
#include <system_error>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/observe/chrome_trace.hpp"
#include "runtime/observe/process.hpp"
#include "runtime/observe/rank_trace.hpp"

namespace cadre {
namespace {

constexpr int kRoundTrips = 20;
constexpr int kTag = 1;

class Conversation {
 public:
  Conversation(const Communicator& world, double deadline_seconds)
      : world_(world), deadline_seconds_(deadline_seconds) {}

  void tell(int64_t value, int peer) const {
    Request sent = world_.send(value, peer, kTag);
    wait(sent, deadline_seconds_, kPosition);
  }
  int64_t hear(int peer) const { return wait(world_.receive<int64_t>(peer, kTag), deadline_seconds_, kPosition); }

 private:
  static constexpr Position kPosition = {.phase = "clock offsets"};

  const Communicator& world_;
  double deadline_seconds_;
};

// By rank 0: what `peer` has to add to its clock.
ClockOffset ask(const Conversation& conversation, int peer, const std::function<int64_t()>& clock_ns) {
  int64_t shortest = std::numeric_limits<int64_t>::max();
  ClockOffset best;
  for (int i = 0; i < kRoundTrips; ++i) {
    const int64_t asked = clock_ns();
    conversation.tell(i, peer);
    const int64_t there = conversation.hear(peer);
    const int64_t answered = clock_ns();
    if (answered - asked >= shortest) continue;
    shortest = answered - asked;
    best = {.at_ns = there, .offset_ns = asked + shortest / 2 - there, .error_ns = (shortest + 1) / 2};
  }
  return best;
}

}  // namespace

int64_t ClockOffsets::error_ns() const { return std::max(begin.error_ns, end.error_ns); }

ClockOffset measure_clock_offset(const Communicator& world, double deadline_seconds,
                                 const std::function<int64_t()>& clock_ns) {
  const Conversation conversation(world, deadline_seconds);
  if (world.rank() == 0) {
    for (int peer = 1; peer < world.size(); ++peer) {
      const ClockOffset found = ask(conversation, peer, clock_ns);
      for (const int64_t value : {found.at_ns, found.offset_ns, found.error_ns}) conversation.tell(value, peer);
    }
    return {.at_ns = clock_ns()};
  }
  for (int i = 0; i < kRoundTrips; ++i) {
    conversation.hear(0);
    conversation.tell(clock_ns(), 0);
  }
  ClockOffset mine;
  for (int64_t* value : {&mine.at_ns, &mine.offset_ns, &mine.error_ns}) *value = conversation.hear(0);
  if (std::abs(mine.offset_ns) <= mine.error_ns) mine.offset_ns = 0;
  return mine;
}

int64_t on_clock_of_rank_0(const ClockOffsets& offsets, int64_t ns) {
  const auto& [begin, end] = offsets;
  const int64_t length = end.at_ns - begin.at_ns;
  if (length <= 0) return ns + begin.offset_ns;
  const int64_t within = std::clamp(ns - begin.at_ns, int64_t{0}, length);
  const double share = static_cast<double>(within) / static_cast<double>(length);
  const double drift = share * static_cast<double>(end.offset_ns - begin.offset_ns);
  return ns + begin.offset_ns + static_cast<int64_t>(drift);
}

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kTraceFileHint = "trace the run again, or copy the file again";

// Complains about one file.
class Reader {
 public:
  explicit Reader(const fs::path& path) : path_(path) {}

  RankTrace read() const {
    const Json source = parse();
    try {
      return trace_from(source);
    } catch (const Json::exception& error) {
      fail(error.what());
    }
  }

 private:
  Json parse() const {
    try {
      return read_json_file(path_);
    } catch (const Error& error) {
      throw Error(error.kind(), error.text(), kTraceFileHint);
    }
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::input, fmt::format("{} is no whole trace of a rank: {}", path_.string(), what),
                kTraceFileHint);
  }
  void require(bool condition, const std::string& what) const {
    if (!condition) fail(what);
  }

  RankTrace trace_from(const Json& source) const {
    const Json& other = source.at("otherData");
    require(other.value("schema", "") == kTraceSchema, fmt::format("otherData.schema is not {}", kTraceSchema));
    require(other.at("version") == kTraceVersion, fmt::format("version is not {}", kTraceVersion));
    RankTrace trace;
    trace.run = run_from(other.at("run"));
    other.at("rank").get_to(trace.rank);
    other.at("host").get_to(trace.host);
    other.at("clock_offset_begin_ns").get_to(trace.clock_offset_begin_ns);
    other.at("clock_offset_end_ns").get_to(trace.clock_offset_end_ns);
    other.at("clock_error_ns").get_to(trace.clock_error_ns);
    other.at("lost_events").get_to(trace.num_lost);
    trace.written_at = other.value("written_at", int64_t{0});
    trace.machine = other.value("machine", "");
    trace.cores = other.value("cores", std::vector<int>());
    require(trace.rank >= 0 && trace.rank < trace.run.num_ranks,
            fmt::format("rank {} of {}", trace.rank, trace.run.num_ranks));
    const Json& entries = source.at("traceEvents");
    const auto num_events = other.at("events").get<size_t>();
    // Each event is at least one entry: a wrong number must not ask for memory.
    require(num_events <= entries.size(), fmt::format("{} events in {} entries", num_events, entries.size()));
    read_events(entries, source.at("baseTimeNanoseconds").get<int64_t>(), num_events, trace);
    return trace;
  }

  static TracedRun run_from(const Json& source) {
    TracedRun run;
    source.at("cadre_version").get_to(run.cadre_version);
    source.at("mpi").get_to(run.mpi);
    source.at("ranks").get_to(run.num_ranks);
    source.at("hosts").get_to(run.num_hosts);
    source.at("pipeline").get_to(run.pipeline);
    source.at("data").get_to(run.data);
    source.at("expert").get_to(run.expert);
    source.at("schedule").get_to(run.schedule);
    source.at("micro_batches").get_to(run.num_micro_batches);
    source.at("exchange").get_to(run.exchange);
    source.at("threads").get_to(run.threads);
    source.at("seed").get_to(run.seed);
    source.at("config_hash").get_to(run.config_hash);
    return run;
  }

  enum Part : uint8_t { kNone = 0, kBegin = 1, kEnd = 2, kBoth = 3 };

  // Counters, names and arrows follow from the events and are passed over.
  void read_events(const Json& entries, int64_t base_ns, size_t num_events, RankTrace& trace) const {
    trace.events.resize(num_events);
    std::vector<uint8_t> parts(num_events, kNone);
    for (size_t number = 0; number < entries.size(); ++number) {
      const Json& entry = entries[number];
      const auto& ph = entry.at("ph").get_ref<const std::string&>();
      if (ph != "X" && ph != "b" && ph != "e") continue;
      const auto place = entry.at("args").at("i").get<size_t>();
      require(place < num_events, fmt::format("entry {}: event {} of {}", number, place, num_events));
      const uint8_t part = ph == "X" ? kBoth : ph == "b" ? kBegin : kEnd;
      require((parts[place] & part) == 0, fmt::format("entry {}: event {} stands there twice", number, place));
      parts[place] |= part;
      TracedEvent& event = trace.events[place];
      const int64_t ns = base_ns + nanoseconds(entry.at("ts"));
      if (part != kEnd) {
        describe(entry, number, event);
        event.begin_ns = ns;
      }
      if (part == kEnd) event.end_ns = ns;
      if (part == kBoth) event.end_ns = ns + nanoseconds(entry.at("dur"));
    }
    for (size_t place = 0; place < num_events; ++place) {
      require(parts[place] == kBoth, fmt::format("event {} of {} is not whole", place, num_events));
      require(trace.events[place].begin_ns <= trace.events[place].end_ns,
              fmt::format("event {} ends before it begins", place));
    }
  }

  static int64_t nanoseconds(const Json& microseconds) { return std::llround(microseconds.get<double>() * 1000); }

  void describe(const Json& entry, size_t number, TracedEvent& event) const {
    const auto& name = entry.at("cat").get_ref<const std::string&>();
    const auto kind = std::ranges::find(kTraceKindNames, name);
    require(kind != kTraceKindNames.end(), fmt::format("entry {}: unknown category {}", number, name));
    event.kind = static_cast<TraceKind>(kind - kTraceKindNames.begin());
    const bool is_flight = event.kind == TraceKind::flight;
    require(is_flight == (entry.at("ph") == "b"),
            fmt::format("entry {}: a {} that is {}", number, name, entry.at("ph").get_ref<const std::string&>()));
    const Json& arguments = entry.at("args");
    arguments.at("phase").get_to(event.phase);
    event.step = arguments.value("step", int64_t{-1});
    event.micro_batch = arguments.value("micro_batch", -1);
    event.layer = arguments.value("layer", -1);
    event.bytes = arguments.value("bytes", int64_t{0});
  }

  const fs::path& path_;
};

}  // namespace

namespace {

int64_t seconds_since_1970() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

RankTrace to_rank_trace(const TraceRecorder& recorder, const TracedRun& run, int rank, const std::string& host,
                        const ClockOffsets& offsets) {
  RankTrace trace = {.run = run,
                     .rank = rank,
                     .host = host,
                     .clock_offset_begin_ns = offsets.begin.offset_ns,
                     .clock_offset_end_ns = offsets.end.offset_ns,
                     .clock_error_ns = offsets.error_ns(),
                     .num_lost = recorder.num_lost(),
                     .written_at = seconds_since_1970(),
                     .machine = machine_id(),
                     .cores = cores_of_process(),
                     .events = {}};
  for (const TraceEvent& event : recorder.events()) {
    trace.events.push_back({.kind = event.kind,
                            .phase = *event.at.phase == '\0' ? "other" : event.at.phase,
                            .step = event.at.step,
                            .micro_batch = event.at.micro_batch,
                            .layer = event.at.layer,
                            .begin_ns = on_clock_of_rank_0(offsets, event.begin_ns),
                            .end_ns = on_clock_of_rank_0(offsets, event.end_ns),
                            .bytes = event.bytes});
  }
  return trace;
}

fs::path trace_path(const fs::path& run_dir, int rank) {
  return run_dir / "trace" / fmt::format("rank{:05}.json", rank);
}

void write_trace(const fs::path& run_dir, const RankTrace& trace) {
  const fs::path path = trace_path(run_dir, trace.rank);
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) {
    throw Error(ErrorKind::environment, fmt::format("cannot make {}: {}", path.parent_path().string(), error.message()),
                "choose another out=, or make room there");
  }
  write_text_file(path, chrome_trace(trace));
}

RankTrace read_trace(const fs::path& path) { return Reader(path).read(); }

std::vector<RankTrace> read_traces(const fs::path& run_dir) {
  std::vector<RankTrace> traces;
  int num_ranks = 1;  // until the first file says it
  for (int rank = 0; rank < num_ranks; ++rank) {
    const fs::path path = trace_path(run_dir, rank);
    std::error_code error;
    CADRE_CHECK(fs::exists(path, error),
                fmt::format("no trace of rank {} in {}: there is no {}", rank, run_dir.string(), path.string()),
                "give the folder of a run that was traced");
    traces.push_back(read_trace(path));
    num_ranks = traces.front().run.num_ranks;
    CADRE_CHECK(traces.back().rank == rank && traces.back().run == traces.front().run,
                fmt::format("{} is not of rank {} of the run that rank 0 was traced in", path.string(), rank),
                "remove the trace folder and trace the run again");
  }
  return traces;
}

}  // namespace cadre
