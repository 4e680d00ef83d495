// SPDX-License-Identifier: Apache-2.0
#include "runtime/report/overlap.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "comm/base/check.hpp"
#include "runtime/observe/matching.hpp"
#include "runtime/report/report_metrics.hpp"
#include "runtime/report/step_sums.hpp"

namespace cadre {
namespace {

constexpr double kUsPerNs = 1e-3;

using SpanOfStep = std::map<int64_t, size_t>;  // by step: the index of its span

void check_traces(const std::vector<RankTrace>& traces) {
  CADRE_CHECK(!traces.empty(), "no traces", "give the folder of a run that was traced");
  const TracedRun& run = traces.front().run;
  CADRE_CHECK(
      run.pipeline >= 1 && run.expert >= 1 && run.pipeline * run.data == run.num_ranks && run.data % run.expert == 0,
      fmt::format("traces of {} ranks with pipeline {}, data {}, expert {}", run.num_ranks, run.pipeline, run.data,
                  run.expert),
      "ranks = pipeline x data, and data is a multiple of expert");
  CADRE_CHECK(static_cast<int>(traces.size()) == run.num_ranks,
              fmt::format("traces of {} ranks, the run had {}", traces.size(), run.num_ranks),
              "all ranks are needed to see who waits for whom");
  for (size_t i = 0; i < traces.size(); ++i) {
    CADRE_CHECK(traces[i].rank == static_cast<int>(i), fmt::format("trace {} is of rank {}", i, traces[i].rank),
                "traces go in the order of ranks, each once");
    CADRE_CHECK(traces[i].run == run, fmt::format("the traces of rank 0 and rank {} are of different runs", i),
                "remove the trace folder and run again");
  }
}

// The step spans of the phase that lie wholly in what the ring still holds: events are lost in the order of their ends.
SpanOfStep whole_steps(const RankTrace& trace, std::string_view phase) {
  int64_t known_from = std::numeric_limits<int64_t>::min();
  if (trace.num_lost > 0 && !trace.events.empty()) {
    known_from = std::ranges::min(trace.events, {}, &TracedEvent::end_ns).end_ns;
  }
  SpanOfStep spans;
  for (size_t i = 0; i < trace.events.size(); ++i) {
    const TracedEvent& event = trace.events[i];
    const bool is_step = event.kind == TraceKind::step && event.phase == phase;
    if (is_step && event.begin_ns >= known_from) spans[event.step] = i;
  }
  return spans;
}

std::vector<SpanOfStep> whole_steps(const std::vector<RankTrace>& traces, std::string_view phase) {
  std::vector<SpanOfStep> spans;
  for (const RankTrace& trace : traces) spans.push_back(whole_steps(trace, phase));
  return spans;
}

// The steps that all ranks have whole.
std::vector<int64_t> common_steps(const std::vector<SpanOfStep>& spans) {
  std::vector<int64_t> steps;
  for (const auto& [step, span] : spans.front()) {
    if (std::ranges::all_of(spans, [&](const SpanOfStep& other) { return other.contains(step); }))
      steps.push_back(step);
  }
  return steps;
}

std::vector<int64_t> chosen_steps(const std::vector<RankTrace>& traces, const std::vector<SpanOfStep>& spans,
                                  const StepRange& range) {
  std::vector<int64_t> steps = common_steps(spans);
  if (steps.empty()) {
    uint64_t lost = 0;
    size_t most = 0;
    for (size_t t = 0; t < traces.size(); ++t) {
      lost = std::max(lost, traces[t].num_lost);
      most = std::max(most, spans[t].size());
    }
    throw Error(ErrorKind::input,
                fmt::format("no complete step in the trace: no step is whole on all {} ranks (a rank has up to {}, and "
                            "up to {} events were lost)",
                            traces.size(), most, lost),
                "let the run trace more steps, or fewer at a time if events were lost");
  }
  const int64_t first = steps.front();
  const int64_t last = steps.back();
  std::erase_if(steps, [&](int64_t step) { return step < range.first || step > range.last; });
  CADRE_CHECK(!steps.empty(),
              fmt::format("none of the chosen steps was traced whole; those that were: {} to {}", first, last),
              "choose among these");
  return steps;
}

struct Analysed {
  const std::vector<RankTrace>& traces;
  std::vector<Operation> operations;
  std::vector<std::vector<FlightTimes>> times;
  std::vector<StepEvents> events;
};

std::vector<StepSums> sums_of(const Analysed& all, const std::vector<SpanOfStep>& spans,
                              const std::vector<int64_t>& steps) {
  std::vector<StepSums> sums(all.traces.size());
  for (size_t t = 0; t < sums.size(); ++t) {
    for (const int64_t step : steps) add_step(all.traces[t], all.times[t], all.events[t], spans[t].at(step), sums[t]);
  }
  return sums;
}

StepTimes times_of(const StepSums& sums) {
  const auto ms = [&](int64_t nanoseconds) { return ms_per_step(nanoseconds, sums); };
  return {.step = ms(sums.step),
          .compute = ms(sums.compute),
          .communication = ms(sums.communication),
          .hidden = ms(sums.hidden),
          .exposed = ms(sums.exposed()),
          .idle = ms(sums.idle()),
          .exchange = ms(sums.exchange),
          .exchange_hidden = ms(sums.exchange_hidden),
          .skew = ms(sums.skew),
          .transfer = ms(sums.exposed() - sums.skew),
          .control = ms(sums.control)};
}

StepTimes mean_times(const std::vector<StepSums>& sums) {
  static constexpr double StepTimes::*kMembers[] = {
      &StepTimes::step,    &StepTimes::compute,  &StepTimes::communication, &StepTimes::hidden,
      &StepTimes::exposed, &StepTimes::idle,     &StepTimes::exchange,      &StepTimes::exchange_hidden,
      &StepTimes::skew,    &StepTimes::transfer, &StepTimes::control};
  StepTimes mean;
  for (const StepSums& rank : sums) {
    const StepTimes times = times_of(rank);
    for (const auto member : kMembers) mean.*member += times.*member / static_cast<double>(sums.size());
  }
  return mean;
}

std::optional<SteadyTimes> steady_times(const std::vector<StepSums>& sums) {
  SteadyTimes mean;
  for (const StepSums& rank : sums) {
    const auto share = [&](int64_t nanoseconds) {
      return ms_per_step(nanoseconds, rank) / static_cast<double>(sums.size());
    };
    mean.time += share(rank.steady.time);
    mean.compute += share(rank.steady.compute);
    mean.exchange += share(rank.steady.exchange);
    mean.exchange_hidden += share(rank.steady.exchange_hidden);
  }
  if (mean.time == 0) return std::nullopt;
  return mean;
}

// For each rank what `pick` makes of its sums of a row, in ms a step; 0 where it has none.
template <class Row, class Key>
double mean_over_ranks(const std::vector<StepSums>& sums, std::map<Key, Row> StepSums::*rows, const Key& key,
                       const std::function<int64_t(const Row&)>& pick) {
  double total = 0;
  for (const StepSums& rank : sums) {
    const auto found = (rank.*rows).find(key);
    if (found != (rank.*rows).end()) total += ms_per_step(pick(found->second), rank);
  }
  return total / static_cast<double>(sums.size());
}

std::vector<PhaseTimes> phases_of(const std::vector<StepSums>& sums) {
  using PhaseKey = std::pair<PhaseClass, std::string>;
  std::set<PhaseKey> keys;
  for (const StepSums& rank : sums) {
    for (const auto& [key, phase] : rank.phases) keys.insert(key);
  }
  std::vector<PhaseTimes> phases;
  for (const PhaseKey& key : keys) {
    PhaseTimes phase = {.phase = key.second, .phase_class = key.first};
    std::vector<double> times;
    int64_t message_bytes = 0;
    int64_t message_ns = 0;
    for (const StepSums& rank : sums) {
      const auto found = rank.phases.find(key);
      times.push_back(found == rank.phases.end() ? 0.0 : ms_per_step(found->second.time, rank));
      if (found == rank.phases.end()) continue;
      phase.bytes += static_cast<double>(found->second.bytes) / static_cast<double>(rank.num_steps);
      message_bytes += found->second.bytes;
      message_ns += found->second.message_time;
    }
    const auto [min, max] = std::ranges::minmax(times);
    phase.min = min;
    phase.max = max;
    phase.mean = std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
    double squares = 0;
    for (const double time : times) squares += (time - phase.mean) * (time - phase.mean);
    if (phase.mean > 0) {
      phase.variation_percent = 100 * std::sqrt(squares / static_cast<double>(times.size())) / phase.mean;
    }
    if (key.first != PhaseClass::compute) {
      phase.hidden = mean_over_ranks<PhaseSums, PhaseKey>(sums, &StepSums::phases, key, &PhaseSums::hidden);
      phase.exposed = phase.mean - phase.hidden;
    }
    if (message_ns > 0) {  // a byte a nanosecond
      phase.gigabytes_per_second = static_cast<double>(message_bytes) / static_cast<double>(message_ns);
    }
    phases.push_back(std::move(phase));
  }
  std::ranges::stable_sort(phases, {}, [](const PhaseTimes& one) { return std::tuple(one.phase_class, -one.mean); });
  return phases;
}

std::vector<LayerTimes> layers_of(const std::vector<StepSums>& sums) {
  std::set<int> numbers;
  for (const StepSums& rank : sums) {
    for (const auto& [layer, times] : rank.layers) numbers.insert(layer);
  }
  std::vector<LayerTimes> layers;
  for (const int layer : numbers) {
    const auto mean = [&](int64_t LayerSums::*member) {
      return mean_over_ranks<LayerSums, int>(sums, &StepSums::layers, layer, member);
    };
    LayerTimes& times = layers.emplace_back();
    times.layer = layer;
    times.compute = mean(&LayerSums::compute);
    times.communication = mean(&LayerSums::communication);
    times.hidden = mean(&LayerSums::hidden);
    times.exposed = times.communication - times.hidden;
  }
  return layers;
}

bool is_among(const EventPlace& place, const std::vector<std::vector<int64_t>>& steps_of_events,
              const std::vector<std::set<int64_t>>& chosen_spans) {
  return chosen_spans[place.trace].contains(steps_of_events[place.trace][place.event]);
}

// Who posted last, in exchanges and reductions of the steps whose spans are `spans`.
std::vector<Straggler> stragglers_of(const Analysed& all, const std::vector<SpanOfStep>& spans,
                                     const std::vector<int64_t>& steps) {
  std::vector<std::vector<int64_t>> steps_of_events;
  std::vector<std::set<int64_t>> chosen(all.traces.size());
  for (size_t t = 0; t < all.traces.size(); ++t) {
    steps_of_events.push_back(steps_of(all.traces[t]));
    for (const int64_t step : steps) chosen[t].insert(static_cast<int64_t>(spans[t].at(step)));
  }
  std::vector<Straggler> ranks(all.traces.size());
  int64_t num_operations = 0;
  for (const Operation& operation : all.operations) {
    if (operation.phase_class == PhaseClass::pipeline) continue;
    if (!is_among(operation.flights.front(), steps_of_events, chosen)) continue;
    const auto posted = [&](const EventPlace& at) { return all.traces[at.trace].events[at.event].begin_ns; };
    const EventPlace last = std::ranges::max(operation.flights, {}, posted);
    double late = 0;
    for (const EventPlace& at : operation.flights) late += static_cast<double>(posted(last) - posted(at));
    Straggler& straggler = ranks[last.trace];
    ++straggler.times_last;
    straggler.mean_late_us += late * kUsPerNs / static_cast<double>(operation.flights.size() - 1);
    ++num_operations;
  }
  for (size_t t = 0; t < ranks.size(); ++t) {
    ranks[t].rank = all.traces[t].rank;
    ranks[t].host = all.traces[t].host;
    if (ranks[t].times_last == 0) continue;
    ranks[t].mean_late_us /= static_cast<double>(ranks[t].times_last);
    ranks[t].share_percent = 100.0 * static_cast<double>(ranks[t].times_last) / static_cast<double>(num_operations);
  }
  std::erase_if(ranks, [](const Straggler& one) { return one.times_last == 0; });
  std::ranges::stable_sort(ranks, std::greater(), &Straggler::times_last);
  return ranks;
}

std::optional<SerialSteps> serial_steps(const Analysed& all, const std::vector<SpanOfStep>& spans,
                                        const std::vector<int64_t>& steps) {
  const std::vector<SpanOfStep> serial_spans = whole_steps(all.traces, kSerialStepPhase);
  std::vector<int64_t> both = common_steps(serial_spans);
  std::erase_if(both, [&](int64_t step) { return !std::ranges::binary_search(steps, step); });
  if (both.empty()) return std::nullopt;
  const StepTimes times = mean_times(sums_of(all, serial_spans, both));
  const std::vector<StepSums> sums = sums_of(all, spans, both);
  double overlapped = 0;
  for (const StepSums& rank : sums) overlapped += ms_per_step(rank.all_passes, rank) / static_cast<double>(sums.size());
  if (overlapped == 0) return std::nullopt;
  const double step = mean_times(sums).step;
  const double whole = step - overlapped + times.step;
  return SerialSteps{times, overlapped, times.step / overlapped, whole, whole / step};
}

// Of what the ranks could use: cores that several may use count once. Nothing where a trace does not say.
std::optional<Cores> cores_of(const std::vector<RankTrace>& traces) {
  struct Machine {
    std::set<int> cores;
    int num_threads = 0;
  };
  std::map<std::string, Machine> machines;
  for (const RankTrace& trace : traces) {
    if (trace.machine.empty() || trace.cores.empty()) return std::nullopt;
    Machine& machine = machines[trace.machine];
    machine.cores.insert(trace.cores.begin(), trace.cores.end());
    machine.num_threads += trace.run.threads;
  }
  Cores all;
  for (const auto& [name, machine] : machines) {
    const auto num_cores = static_cast<int>(machine.cores.size());
    all.number += num_cores;
    all.are_shared = all.are_shared || machine.num_threads > num_cores;
  }
  return all;
}

std::optional<SpeedUp> speed_up_of(const OverlapReport& report) {
  const StepTimes& times = report.times;
  if (report.run.num_ranks == 1 || times.communication <= 0 || times.step <= 0) return std::nullopt;
  if (report.without_overlap) {
    return SpeedUp{report.without_overlap->whole_step, report.without_overlap->whole_speed_up, true};
  }
  // Stages wait for each other in serial steps too; how long, intervals do not tell.
  if (report.run.pipeline > 1) return std::nullopt;
  const double serial = times.compute + times.communication;
  return SpeedUp{serial, serial / times.step, false};
}

}  // namespace

std::optional<double> percent(double part, double whole) {
  if (whole <= 0) return std::nullopt;
  return 100 * part / whole;
}

double osu_overlap_percent(double overlapped, double compute, double communication, double serial) {
  if (overlapped >= serial || communication <= 0) return 0;
  return std::clamp(100 * (1 - (overlapped - compute) / communication), 0.0, 100.0);
}

OverlapReport analyse_overlap(const std::vector<RankTrace>& traces, const StepRange& range,
                              const std::vector<LoggedStep>& metrics) {
  check_traces(traces);
  const std::vector<SpanOfStep> spans = whole_steps(traces, kStepPhase);
  const std::vector<int64_t> steps = chosen_steps(traces, spans, range);
  Analysed all = {.traces = traces, .operations = match_flights(traces), .times = {}, .events = {}};
  all.times = flight_times(traces, all.operations);
  for (const RankTrace& trace : traces) all.events.emplace_back(trace);
  const std::vector<StepSums> sums = sums_of(all, spans, steps);

  OverlapReport report;
  report.run = traces.front().run;
  report.first_step = steps.front();
  report.last_step = steps.back();
  report.num_steps = static_cast<int64_t>(steps.size());
  report.written_at = traces.front().written_at;
  report.times = mean_times(sums);
  report.steady = steady_times(sums);
  report.phases = phases_of(sums);
  report.layers = layers_of(sums);
  double max_compute = 0;
  double max_step = 0;
  for (size_t t = 0; t < traces.size(); ++t) {
    report.clock_error_us = std::max(report.clock_error_us, static_cast<double>(traces[t].clock_error_ns) * kUsPerNs);
    report.lost_events += traces[t].num_lost;
    report.ranks.push_back({traces[t].rank, traces[t].host, times_of(sums[t])});
    max_compute = std::max(max_compute, report.ranks.back().times.compute);
    max_step = std::max(max_step, report.ranks.back().times.step);
  }
  report.load_balance = max_compute > 0 ? report.times.compute / max_compute : 0;
  report.communication_efficiency = max_step > 0 ? max_compute / max_step : 0;
  report.stragglers = stragglers_of(all, spans, steps);
  report.bubble = bubble_of(report.run, sums);
  report.without_overlap = serial_steps(all, spans, steps);
  report.speed_up = speed_up_of(report);
  report.cores = cores_of(traces);
  add_metrics(metrics, steps, report);
  return report;
}

}  // namespace cadre
