// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/matching.hpp"

#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "comm/group/topology.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre {

PhaseClass class_of(std::string_view phase) {
  static constexpr std::array<std::string_view, 2> kControl = {"metrics", "expert counts"};
  if (phase.starts_with("dispatch") || phase.starts_with("combine")) return PhaseClass::exchange;
  if (phase.starts_with("send ") || phase.starts_with("receive ")) return PhaseClass::pipeline;
  if (phase.ends_with("gradient reduction") || phase.ends_with("parameter gather") || phase == "gradient norm") {
    return PhaseClass::reduction;
  }
  if (std::ranges::find(kControl, phase) != kControl.end()) return PhaseClass::control;
  return PhaseClass::compute;
}

const char* name_of(PhaseClass phase_class) {
  switch (phase_class) {
    case PhaseClass::exchange: return "exchange";
    case PhaseClass::pipeline: return "pipeline";
    case PhaseClass::reduction: return "reduction";
    case PhaseClass::control: return "control";
    case PhaseClass::compute: return "compute";
  }
  return "";
}

namespace {

// What the flights of one operation agree in.
struct Key {
  int group = 0;  // of the ranks that take part
  int64_t step = -1;
  bool serial = false;
  std::string phase;  // "" for messages
  int micro_batch = -1;
  int layer = -1;
  int number = 0;  // of its kind on its rank; of messages the index of the work that they feed

  auto operator<=>(const Key&) const = default;
};

Grid grid_of(const TracedRun& run) { return {.pipeline = run.pipeline, .data = run.data, .expert = run.expert}; }

int group_of(const Grid& grid, const std::string& phase, int rank) {
  switch (class_of(phase)) {
    case PhaseClass::exchange: return grid.expert_group(rank);
    case PhaseClass::pipeline: return grid.pipeline_group(rank);
    case PhaseClass::reduction:
    case PhaseClass::control:
    case PhaseClass::compute: break;
  }
  // All ranks that hold a layer reduce its gradients, those of experts the ranks that hold the same ones.
  if (phase == "expert gradient reduction" || phase == "expert parameter gather") return grid.expert_rank(rank);
  if (phase == "expert counts") return grid.data_group(rank);
  return 0;
}

// The works that the messages of a phase feed, by micro-batch, in the order in which the rank posts them.
class Messages {
 public:
  explicit Messages(const TracedRun& run) {
    const std::vector<std::string> known = schedule_names();
    if (run.pipeline > 1 && std::ranges::find(known, run.schedule) != known.end()) {
      program_ = make_program(run.schedule, run.pipeline, run.num_micro_batches);
    }
  }

  // The index of the work that the n-th flight of its kind feeds.
  std::optional<int> work_of(int stage_rank, const std::string& phase, int micro_batch, int number) const {
    if (!program_ || stage_rank >= program_->num_ranks) return std::nullopt;
    const OpKind kind = phase.starts_with("send ") ? OpKind::send : OpKind::receive;
    const Pass pass = phase.ends_with("activations") ? Pass::forward : Pass::backward;
    for (const Op& op : program_->ops[static_cast<size_t>(stage_rank)]) {
      if (op.kind != kind || op.feeds.pass != pass || op.feeds.chunk.micro_batch != micro_batch) continue;
      if (number-- == 0) return index_of(*program_, op.feeds);
    }
    return std::nullopt;
  }

 private:
  std::optional<Program> program_;
};

bool is_receive(const TracedEvent& event) { return event.phase.starts_with("receive "); }

// Flights of the trace by the time of their posting; those of one time in the order of recording.
std::vector<size_t> flights_by_posting(const RankTrace& trace) {
  std::vector<size_t> flights;
  for (size_t i = 0; i < trace.events.size(); ++i) {
    if (trace.events[i].kind == TraceKind::flight) flights.push_back(i);
  }
  std::ranges::stable_sort(flights, {}, [&](size_t i) { return trace.events[i].begin_ns; });
  return flights;
}

}  // namespace

std::vector<int64_t> steps_of(const RankTrace& trace) {
  std::vector<int64_t> spans;
  for (size_t i = 0; i < trace.events.size(); ++i) {
    if (trace.events[i].kind == TraceKind::step) spans.push_back(static_cast<int64_t>(i));
  }
  const auto begin_of = [&](int64_t i) { return trace.events[static_cast<size_t>(i)].begin_ns; };
  std::ranges::sort(spans, {}, begin_of);
  std::vector<int64_t> steps;
  steps.reserve(trace.events.size());
  for (const TracedEvent& event : trace.events) {
    const auto after = std::ranges::upper_bound(spans, event.begin_ns, {}, begin_of);
    const bool inside =
        after != spans.begin() && event.begin_ns < trace.events[static_cast<size_t>(*std::prev(after))].end_ns;
    steps.push_back(inside ? *std::prev(after) : -1);
  }
  return steps;
}

std::vector<Operation> match_flights(const std::vector<RankTrace>& traces) {
  std::map<Key, Operation> operations;
  if (traces.empty()) return {};
  const Messages messages(traces.front().run);
  for (size_t t = 0; t < traces.size(); ++t) {
    const RankTrace& trace = traces[t];
    const Grid grid = grid_of(trace.run);
    const std::vector<int64_t> steps = steps_of(trace);
    std::map<Key, int> numbers;
    for (const size_t i : flights_by_posting(trace)) {
      if (steps[i] < 0) continue;
      const TracedEvent& event = trace.events[i];
      const TracedEvent& step = trace.events[static_cast<size_t>(steps[i])];
      Key key = {group_of(grid, event.phase, trace.rank),
                 step.step,
                 step.phase == kSerialStepPhase,
                 event.phase,
                 event.micro_batch,
                 event.layer};
      const PhaseClass phase_class = class_of(event.phase);
      if (phase_class == PhaseClass::pipeline) key.layer = -1;
      key.number = numbers[key]++;
      if (phase_class == PhaseClass::pipeline) {
        const auto work = messages.work_of(grid.stage(trace.rank), event.phase, event.micro_batch, key.number);
        if (!work) continue;
        key = {key.group, key.step, key.serial, "", -1, -1, *work};
      }
      Operation& operation = operations[key];
      operation.phase_class = phase_class;
      operation.in_serial_step = key.serial;
      operation.flights.push_back({t, i});
    }
  }
  std::vector<Operation> matched;
  for (auto& [key, operation] : operations) {
    if (operation.flights.size() < 2) continue;
    if (operation.phase_class == PhaseClass::pipeline) {
      std::ranges::stable_sort(operation.flights, {},
                               [&](const EventPlace& at) { return is_receive(traces[at.trace].events[at.event]); });
    }
    matched.push_back(std::move(operation));
  }
  return matched;
}

std::vector<std::vector<FlightTimes>> flight_times(const std::vector<RankTrace>& traces,
                                                   const std::vector<Operation>& operations) {
  std::vector<std::vector<FlightTimes>> times;
  for (const RankTrace& trace : traces) {
    times.emplace_back();
    for (const TracedEvent& event : trace.events)

      times.back().push_back({event.begin_ns, event.begin_ns, event.end_ns, event.end_ns});
  }
  for (const Operation& operation : operations) {
    int64_t last_post = 0;
    const auto posted = [&](const EventPlace& at) { return traces[at.trace].events[at.event].begin_ns; };
    for (const EventPlace& at : operation.flights) {
      last_post = at == operation.flights.front() ? posted(at) : std::max(last_post, posted(at));
    }
    for (const EventPlace& at : operation.flights) times[at.trace][at.event].last_post_ns = last_post;
    if (operation.phase_class != PhaseClass::pipeline) continue;
    const EventPlace receive = operation.flights.back();
    FlightTimes& received = times[receive.trace][receive.event];
    received.begin_ns = last_post;
    FlightTimes& sent = times[operation.flights.front().trace][operation.flights.front().event];
    sent.arrival_ns = std::max(received.end_ns, sent.begin_ns);
    sent.end_ns = std::min(sent.end_ns, sent.arrival_ns);
  }
  return times;
}

}  // namespace cadre
