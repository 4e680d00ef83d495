// SPDX-License-Identifier: Apache-2.0
// Trace files read back as they were written, and keep the rules of the format: slices of a thread nest, what begins
// ends, arrows have both ends in slices.
#include "runtime/observe/trace_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/observe/chrome_trace.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/traces.hpp"

namespace cadre::trace_file_test {
namespace {

using test::add;
using test::exchange_traces;
using test::pipeline_traces;
using test::TemporaryDirectory;
using testing::HasSubstr;
using enum TraceKind;
using Json = nlohmann::json;

int64_t ns_of(const Json& microseconds) { return std::llround(microseconds.get<double>() * 1000); }

struct Slice {
  int64_t begin;
  int64_t end;
};

// What a reader of the format asks for.
class Checker {
 public:
  explicit Checker(const std::string& text) : json_(Json::parse(text)) {
    int64_t last = std::numeric_limits<int64_t>::min();
    for (const Json& entry : json_.at("traceEvents")) {
      const std::string ph = entry.at("ph");
      ++counts_[ph];
      EXPECT_TRUE(entry.contains("pid")) << entry;
      if (ph == "M") continue;
      const int64_t ts = ns_of(entry.at("ts"));
      EXPECT_GE(ts, 0) << entry;
      EXPECT_GE(ts, last) << "entries are in the order of time: " << entry;
      last = ts;
      if (ph == "X") add_slice(entry, ts);
      if (ph == "b" || ph == "e") add_async(entry, ts);
      if (ph == "s" || ph == "f") add_arrow(entry, ts);
    }
    for (const auto& [id, pair] : async_) EXPECT_TRUE(pair.first == 1 && pair.second == 1) << "b and e of " << id;
    check_arrows();
  }

  const Json& json() const { return json_; }
  int count(const std::string& ph) const { return counts_.contains(ph) ? counts_.at(ph) : 0; }
  size_t num_slices(int pid, int tid) const { return slices_.contains({pid, tid}) ? slices_.at({pid, tid}).size() : 0; }
  // "1 -> 0 dispatch 350 -> 500", times in whole us.
  std::set<std::string> arrows() const {
    std::set<std::string> drawn;
    for (const auto& [id, ends] : arrows_) {
      drawn.insert(fmt::format("{} -> {} {} {} -> {}", ends.first.at("pid").get<int>(),
                               ends.second.at("pid").get<int>(), ends.first.at("name").get<std::string>(),
                               ns_of(ends.first.at("ts")) / 1000, ns_of(ends.second.at("ts")) / 1000));
    }
    return drawn;
  }

 private:
  void add_slice(const Json& entry, int64_t ts) {
    const Slice slice = {ts, ts + ns_of(entry.at("dur"))};
    EXPECT_LE(slice.begin, slice.end) << entry;
    std::vector<Slice>& before = slices_[{entry.at("pid"), entry.at("tid")}];
    for (const Slice& other : before) {
      const bool apart = other.end <= slice.begin;
      const bool inside = other.begin <= slice.begin && slice.end <= other.end;
      EXPECT_TRUE(apart || inside) << "not nested: " << entry;
    }
    before.push_back(slice);
  }

  void add_async(const Json& entry, int64_t ts) {
    auto& [begins, ends] = async_[entry.at("cat").get<std::string>() + entry.at("id").get<std::string>()];
    if (entry.at("ph") == "b") {
      ++begins;
      began_[entry.at("id")] = ts;
    } else {
      ++ends;
      EXPECT_LE(began_.at(entry.at("id")), ts) << entry;
    }
  }

  void add_arrow(const Json& entry, int64_t ts) {
    const auto& of_thread = slices_[{entry.at("pid"), entry.at("tid")}];
    EXPECT_TRUE(std::ranges::any_of(of_thread, [&](const Slice& one) { return one.begin <= ts && ts < one.end; }))
        << "no slice encloses " << entry;
    auto& [start, finish] = arrows_[entry.at("id")];
    Json& end = entry.at("ph") == "s" ? start : finish;
    EXPECT_TRUE(end.is_null()) << "twice: " << entry;
    end = entry;
    if (entry.at("ph") == "f") {
      EXPECT_EQ(entry.at("bp"), "e");
      EXPECT_FALSE(start.is_null()) << "ends before it starts: " << entry;
    }
  }

  void check_arrows() const {
    for (const auto& [id, ends] : arrows_) {
      ASSERT_FALSE(ends.first.is_null() || ends.second.is_null()) << "arrow " << id;
      EXPECT_EQ(ends.first.at("name"), ends.second.at("name"));
      EXPECT_EQ(ends.first.at("cat"), ends.second.at("cat"));
    }
  }

  Json json_;
  std::map<std::string, int> counts_;
  std::map<std::pair<int, int>, std::vector<Slice>> slices_;
  std::map<std::string, std::pair<int, int>> async_;
  std::map<std::string, int64_t> began_;
  std::map<int64_t, std::pair<Json, Json>> arrows_;
};

// A trace with what is awkward: 300 days of uptime, odd nanoseconds, events out of order, text that must be escaped.
RankTrace awkward_trace() {
  RankTrace trace = exchange_traces()[1];
  trace.run.config_hash = "\"quoted\" \\ \n";
  trace.run.seed = std::numeric_limits<int64_t>::min();
  trace.host = "knoten-\xc3\xa4";
  trace.num_lost = std::numeric_limits<uint64_t>::max();
  trace.clock_offset_begin_ns = -1234567890123456789;
  trace.clock_offset_end_ns = 7;
  trace.clock_error_ns = 312;
  trace.written_at = 1'764'500'000;
  trace.machine = "\"machine\"";
  trace.cores = {0, 2, 17};
  int64_t odd = 300LL * 24 * 3600 * 1'000'000'000 + 1;
  for (TracedEvent& event : trace.events) {
    event.begin_ns += odd;
    event.end_ns += odd;
  }
  trace.events.push_back({flight, "other", -1, -1, -1, odd, odd, 0});
  trace.events.push_back({compute, "a \"phase\"", 3, 2, 1, odd - 999, odd - 1, 0});
  std::ranges::reverse(trace.events);
  return trace;
}

TEST(TraceFile, ReadsBackWhatWasWritten) {
  const TemporaryDirectory folder;
  for (const RankTrace& trace :
       {awkward_trace(), exchange_traces()[0], test::empty_trace(test::traced_run(1, 1, 1), 0)}) {
    write_trace(folder.path(), trace);
    EXPECT_EQ(read_trace(trace_path(folder.path(), trace.rank)), trace);
    Checker(test::read_file(trace_path(folder.path(), trace.rank)));
  }
  EXPECT_EQ(trace_path("run", 3), "run/trace/rank00003.json");
}

TEST(TraceFile, ReadsBackAnyNanosecond) {
  const TemporaryDirectory folder;
  std::mt19937_64 random(5);
  RankTrace trace = test::empty_trace(test::traced_run(1, 1, 1), 0);
  // From the first to the last event lies a week, which a double of microseconds holds to far below a nanosecond.
  const int64_t week = int64_t{7} * 24 * 3600 * 1'000'000'000;
  for (int i = 0; i < 2000; ++i) {
    const auto begin = static_cast<int64_t>(random() % week);
    trace.events.push_back({flight, "metrics", i, -1, -1, begin, begin + static_cast<int64_t>(random() % week), i});
  }
  write_trace(folder.path(), trace);
  EXPECT_EQ(read_trace(trace_path(folder.path(), 0)), trace);
}

TEST(TraceFile, KeepsTheRulesOfTheFormat) {
  const Checker checker(chrome_trace(exchange_traces()[0]));
  EXPECT_EQ(checker.num_slices(0, 0), 2U) << "a step and an op";
  EXPECT_EQ(checker.num_slices(0, 1), 4U);
  EXPECT_EQ(checker.num_slices(0, 2), 3U);
  EXPECT_EQ(checker.count("b"), 3);
  EXPECT_EQ(checker.count("e"), 3);
  std::map<std::string, std::string> names;
  std::vector<int64_t> in_flight;
  for (const Json& entry : checker.json().at("traceEvents")) {
    if (entry["name"] == "process_name") names["process"] = entry["args"]["name"];
    if (entry["name"] == "thread_name") names[entry["tid"].dump()] = entry["args"]["name"];
    if (entry["ph"] == "C") in_flight.push_back(entry["args"]["bytes"]);
  }
  EXPECT_EQ(names, (std::map<std::string, std::string>{
                       {"0", "steps"}, {"1", "compute"}, {"2", "exposed wait"}, {"process", "rank 0 @ host0"}}));
  EXPECT_EQ(in_flight, (std::vector<int64_t>{4000, 0, 100, 6100, 6000, 0}));
  EXPECT_EQ(checker.json()["otherData"]["run"]["schedule"], "1f1b");
}

TEST(TraceFile, SlicesThatDoNotNestGetThreadsOfTheirOwn) {
  RankTrace trace = test::empty_trace(test::traced_run(1, 1, 1), 0);
  add(trace, step, "step", 0, 100);
  add(trace, op, "forward", 0, 60);
  add(trace, op, "backward", 40, 100);
  add(trace, op, "forward", 50, 120);
  const Checker checker(chrome_trace(trace));
  EXPECT_EQ(checker.num_slices(0, 0), 2U);
  EXPECT_EQ(checker.num_slices(0, 10), 1U);
  EXPECT_EQ(checker.num_slices(0, 20), 1U);
}

TEST(TraceFile, MergedTracesHaveArrowsFromPostingToCompletion) {
  const Checker checker(merged_chrome_trace(exchange_traces()));
  EXPECT_EQ(checker.arrows(), (std::set<std::string>{"0 -> 1 dispatch 200 -> 520", "1 -> 0 dispatch 350 -> 500",
                                                     "0 -> 1 metrics 600 -> 690", "1 -> 0 metrics 610 -> 700",
                                                     "0 -> 1 combine 650 -> 900", "1 -> 0 combine 850 -> 900"}));
  EXPECT_EQ(checker.num_slices(1, 1), 3U);
  EXPECT_EQ(checker.json()["otherData"]["ranks"].size(), 2U);
}

TEST(TraceFile, MessagesOfThePipelineHaveOneArrow) {
  const Checker checker(merged_chrome_trace(pipeline_traces()));
  EXPECT_EQ(checker.arrows(),
            (std::set<std::string>{"0 -> 1 send activations 100 -> 160", "1 -> 0 send gradients 380 -> 420"}));
}

// Readers drop an arrow whose end lies in no slice, or before its start; it is not written.
TEST(TraceFile, ArrowsThatCannotBeDrawnAreLeftOut) {
  const TracedRun run = test::traced_run(1, 2, 2);
  RankTrace first = test::empty_trace(run, 0);
  add(first, step, "step", 0, 300);
  add(first, compute, "norm", 0, 100);
  add(first, compute, "norm", 200, 300);
  add(first, flight, "dispatch", 10, 150);
  add(first, flight, "metrics", 50, 60);
  RankTrace second = test::empty_trace(run, 1);
  add(second, step, "step", 0, 300);
  add(second, compute, "norm", 0, 300);
  add(second, flight, "dispatch", 20, 250);
  add(second, flight, "metrics", 30, 40);
  const Checker checker(merged_chrome_trace({first, second}));
  EXPECT_EQ(checker.arrows(), (std::set<std::string>{"0 -> 1 dispatch 10 -> 250", "1 -> 0 metrics 30 -> 60"}));
}

// In a group of 9 ranks 8 arrows from the last to post, not 72.
TEST(TraceFile, LargeGroupsHaveArrowsFromTheLastOnly) {
  std::vector<RankTrace> traces;
  for (int rank = 0; rank < 9; ++rank) {
    RankTrace trace = test::empty_trace(test::traced_run(1, 9, 9), rank);
    add(trace, compute, "norm", 0, 200);
    add(trace, flight, "dispatch", rank == 4 ? 20 : 10, 100, {.layer = 1});
    add(trace, step, "step", 0, 200);
    traces.push_back(trace);
  }
  const Checker checker(merged_chrome_trace(traces));
  EXPECT_EQ(checker.count("s"), 8);
  for (const std::string& arrow : checker.arrows()) EXPECT_THAT(arrow, testing::StartsWith("4 -> "));
}

TEST(TraceFile, RefusesDamagedFiles) {
  const TemporaryDirectory folder;
  const std::filesystem::path path = trace_path(folder.path(), 0);
  write_trace(folder.path(), exchange_traces()[0]);
  const std::string whole = test::read_file(path);
  const auto said_of = [&](const std::string& text) {
    test::write_file(path, text);
    const std::string message = test::message_of([&] { read_trace(path); });
    EXPECT_THAT(message, HasSubstr("rank00000.json"));
    return message;
  };
  const auto with = [&](const std::function<void(Json&)>& damage) {
    Json json = Json::parse(whole);
    damage(json);
    return said_of(json.dump());
  };
  const auto first = [](Json& json, const char* ph) -> Json& {
    return *std::ranges::find_if(json["traceEvents"], [&](const Json& entry) { return entry["ph"] == ph; });
  };
  for (const size_t length : {size_t{0}, size_t{1}, whole.size() / 2, whole.size() - 3}) {
    EXPECT_NE(said_of(whole.substr(0, length)), "no error");
  }
  EXPECT_THAT(said_of("[]"), HasSubstr("no whole trace"));
  EXPECT_THAT(with([](Json& json) { json["otherData"]["schema"] = "other"; }), HasSubstr("cadre.trace"));
  EXPECT_THAT(with([](Json& json) { json["otherData"]["version"] = 2; }), HasSubstr("version"));
  EXPECT_THAT(with([](Json& json) { json["otherData"].erase("host"); }), HasSubstr("host"));
  EXPECT_THAT(with([](Json& json) { json["otherData"]["rank"] = 2; }), HasSubstr("rank 2 of 2"));
  EXPECT_THAT(with([](Json& json) { json["otherData"]["events"] = 1'000'000'000'000; }),
              HasSubstr("1000000000000 events"));
  EXPECT_THAT(with([&](Json& json) { first(json, "X")["args"].erase("phase"); }), HasSubstr("phase"));
  EXPECT_THAT(with([&](Json& json) { first(json, "X")["cat"] = "music"; }), HasSubstr("music"));
  EXPECT_THAT(with([&](Json& json) { first(json, "X")["cat"] = "flight"; }), HasSubstr("a flight that is X"));
  EXPECT_THAT(with([&](Json& json) { first(json, "X")["args"]["i"] = 99; }), HasSubstr("event 99 of"));
  EXPECT_THAT(with([&](Json& json) { first(json, "X")["dur"] = "long"; }), HasSubstr("must be number"));
  EXPECT_THAT(with([&](Json& json) { first(json, "X")["dur"] = -1; }), HasSubstr("ends before it begins"));
  EXPECT_THAT(with([&](Json& json) { first(json, "e")["ph"] = "C"; }), HasSubstr("is not whole"));
  EXPECT_THAT(with([&](Json& json) { first(json, "e")["ph"] = "b"; }), HasSubstr("twice"));
  test::write_file(path, whole);
  EXPECT_EQ(read_trace(path), exchange_traces()[0]);
}

TEST(TraceFile, ReadsAllRanksOfARun) {
  const TemporaryDirectory folder;
  std::vector<RankTrace> traces = exchange_traces();
  test::expect_message(test::message_of([&] { read_traces(folder.path()); }), {"no trace of rank 0"});
  write_trace(folder.path(), traces[0]);
  test::expect_message(test::message_of([&] { read_traces(folder.path()); }), {"no trace of rank 1", "rank00001.json"});
  write_trace(folder.path(), traces[1]);
  RankTrace left_over = traces[1];  // by a run of more ranks
  left_over.run.num_ranks = 8;
  left_over.rank = 2;
  write_trace(folder.path(), left_over);
  EXPECT_EQ(read_traces(folder.path()), traces);
  traces[1].run.config_hash = "other";
  write_trace(folder.path(), traces[1]);
  test::expect_message(test::message_of([&] { read_traces(folder.path()); }), {"rank00001.json is not of rank 1"});
}

TEST(TraceFile, TakesARecorderToTheClockOfRank0) {
  TraceRecorder recorder(2);
  recorder.add({compute, {.step = 1}, 900, 1000});
  recorder.add({compute, {.step = 2, .layer = 3}, 1000, 1100});
  recorder.add({flight, {.step = 2, .micro_batch = 1, .layer = 3, .phase = "dispatch"}, 1050, 1200, 64});
  const ClockOffsets offsets = {{.at_ns = 1000, .offset_ns = 5000, .error_ns = 9},
                                {.at_ns = 1200, .offset_ns = 5100, .error_ns = 8}};
  const RankTrace trace = to_rank_trace(recorder, test::traced_run(1, 4, 2), 3, "node", offsets);
  EXPECT_EQ(trace.rank, 3);
  EXPECT_EQ(trace.host, "node");
  EXPECT_EQ(trace.num_lost, 1U);
  EXPECT_EQ(trace.clock_offset_begin_ns, 5000);
  EXPECT_EQ(trace.clock_offset_end_ns, 5100);
  EXPECT_EQ(trace.clock_error_ns, 9);
  EXPECT_GT(trace.written_at, 1'700'000'000);
  EXPECT_FALSE(trace.cores.empty());
  EXPECT_EQ(trace.events, (std::vector<TracedEvent>{{compute, "other", 2, -1, 3, 6000, 6150, 0},
                                                    {flight, "dispatch", 2, 1, 3, 6075, 6300, 64}}));
}

// The disguise: each kernel has its launch, communication an NCCL name on streams from 20 on, and a line says the rank.
TEST(HtaTrace, LooksLikeTheTraceOfAGpu) {
  const std::vector<std::string> texts = hta_traces(exchange_traces());
  ASSERT_EQ(texts.size(), 2U);
  EXPECT_THAT(texts[1], HasSubstr("\n\"rank\": 1,\n"));
  const Checker checker(texts[0]);
  std::map<int64_t, std::pair<int, int>> pairs;  // launches and kernels by correlation
  std::map<std::string, int> streams;
  for (const Json& entry : checker.json().at("traceEvents")) {
    if (entry["cat"] == "cuda_runtime") ++pairs[entry["args"]["correlation"]].first;
    if (entry["cat"] != "kernel") continue;
    ++pairs[entry["args"]["correlation"]].second;
    streams[entry["name"]] = entry["args"]["stream"];
  }
  EXPECT_EQ(pairs.size(), 7U) << "4 of computation and 3 in flight; waits are none";
  for (const auto& [correlation, both] : pairs) EXPECT_EQ(both, std::pair(1, 1));
  EXPECT_EQ(streams, (std::map<std::string, int>{{"norm", 7},
                                                 {"shared experts", 7},
                                                 {"experts", 7},
                                                 {"optimizer", 7},
                                                 {"ncclDevKernel_dispatch", 20},
                                                 {"ncclDevKernel_metrics", 20},
                                                 {"ncclDevKernel_combine", 21}}));
  EXPECT_THAT(texts[0], HasSubstr("\"name\":\"ProfilerStep#7\""));
}

TEST(HtaTrace, LeavesOutWhatIsNoOverlap) {
  std::vector<RankTrace> traces = pipeline_traces();
  for (RankTrace& trace : traces) test::repeat_step(trace, 7, 1000, "step without overlap");
  const Json json = Json::parse(hta_traces(traces)[0]);
  int64_t received = 0;
  int kernels = 0;
  for (const Json& entry : json["traceEvents"]) {
    if (entry["cat"] == "kernel") ++kernels;
    if (entry["name"] == "ncclDevKernel_receive_gradients") received += ns_of(entry["dur"]);
  }
  EXPECT_EQ(kernels, 4);
  EXPECT_EQ(received, 40'000) << "from its send on";
}

}  // namespace
}  // namespace cadre::trace_file_test
