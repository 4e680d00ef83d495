// SPDX-License-Identifier: Apache-2.0
// Holistic Trace Analysis tells communication by the name of a kernel, wants the launch of each kernel from a thread of
// the host, and looks for the rank line by line.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "runtime/observe/chrome_trace.hpp"
#include "runtime/observe/matching.hpp"

namespace cadre {
namespace {

constexpr int kComputeStream = 7;
constexpr int kFirstFlightStream = 20;
constexpr int kHostThread = 1;
constexpr int64_t kLaunchNs = 1000;

struct Kernel {
  const TracedEvent* event;
  int64_t begin_ns;
  std::string name;
  int stream;
};

std::string nccl_name(std::string phase) {
  std::ranges::replace(phase, ' ', '_');
  return "ncclDevKernel_" + phase;
}

bool is_overlapped_step(const TracedEvent& event) { return event.kind == TraceKind::step && event.phase == kStepPhase; }

std::vector<Kernel> kernels_of(const RankTrace& trace, const std::vector<FlightTimes>& times) {
  const std::vector<int64_t> steps = steps_of(trace);
  std::vector<Kernel> kernels;
  std::vector<TracedEvent> flights;  // as they count
  std::vector<size_t> places;
  for (size_t i = 0; i < trace.events.size(); ++i) {
    const TracedEvent& event = trace.events[i];
    if (steps[i] < 0 || !is_overlapped_step(trace.events[static_cast<size_t>(steps[i])])) continue;
    if (event.kind == TraceKind::compute) {
      kernels.push_back({&event, event.begin_ns, event.phase, kComputeStream});
    } else if (event.kind == TraceKind::flight && times[i].begin_ns < event.end_ns) {
      places.push_back(i);
      flights.push_back(event);
      flights.back().begin_ns = times[i].begin_ns;
    }
  }
  std::vector<const TracedEvent*> lanes_input;
  for (const TracedEvent& flight : flights) lanes_input.push_back(&flight);
  const std::vector<int> lanes = disjoint_lanes(lanes_input);
  for (size_t k = 0; k < places.size(); ++k) {
    const TracedEvent& event = trace.events[places[k]];
    kernels.push_back({&event, flights[k].begin_ns, nccl_name(event.phase), kFirstFlightStream + lanes[k]});
  }
  std::ranges::stable_sort(kernels, {}, &Kernel::begin_ns);
  return kernels;
}

std::string hta_trace(const RankTrace& trace, const std::vector<FlightTimes>& times, int64_t base_ns) {
  ChromeEvents out(base_ns);
  const int host = 1000 + trace.rank;  // a process number that is not that of the device, 0
  for (const TracedEvent& event : trace.events) {
    if (!is_overlapped_step(event)) continue;
    out.slice(event.begin_ns, event.end_ns,
              fmt::format(R"("name":"ProfilerStep#{}","cat":"user_annotation","pid":{},"tid":{},"args":{{}})",
                          event.step, host, kHostThread));
  }
  const std::vector<Kernel> kernels = kernels_of(trace, times);
  for (size_t i = 0; i < kernels.size(); ++i) {
    const Kernel& kernel = kernels[i];
    // Launches lie apart and inside of their step: at the begin of the kernel, for as long as there is until the next.
    const int64_t next = i + 1 < kernels.size() ? kernels[i + 1].begin_ns : kernel.event->end_ns;
    const int64_t launched = std::min({kernel.begin_ns + kLaunchNs, next, kernel.event->end_ns});
    out.slice(
        kernel.begin_ns, launched,
        fmt::format(R"("name":"cudaLaunchKernel","cat":"cuda_runtime","pid":{},"tid":{},"args":{{"correlation":{}}})",
                    host, kHostThread, i + 1));
    out.slice(
        kernel.begin_ns, kernel.event->end_ns,
        fmt::format(
            R"("name":{},"cat":"kernel","pid":0,"tid":{},"args":{{"stream":{},"device":0,"correlation":{},"bytes":{}}})",
            json_text(kernel.name), kernel.stream, kernel.stream, i + 1, kernel.event->bytes));
  }
  return fmt::format(
      "{{\n\"schemaVersion\": 1,\n\"deviceProperties\": [],\n\"distributedInfo\": {{\n\"backend\": "
      "\"nccl\",\n\"rank\": "
      "{},\n\"world_size\": {}\n}},\n\"displayTimeUnit\": \"ms\",\n\"baseTimeNanoseconds\": {},\n\"traceName\": "
      "\"rank{:05}.json\",\n\"traceEvents\": [\n{}\n]\n}}\n",
      trace.rank, trace.run.num_ranks, base_ns, trace.rank, out.text());
}

}  // namespace

std::vector<std::string> hta_traces(const std::vector<RankTrace>& traces) {
  const std::vector<std::vector<FlightTimes>> times = flight_times(traces, match_flights(traces));
  int64_t first = std::numeric_limits<int64_t>::max();
  for (const RankTrace& trace : traces) {
    for (const TracedEvent& event : trace.events) first = std::min(first, event.begin_ns);
  }
  const int64_t base = chrome_base_ns(first == std::numeric_limits<int64_t>::max() ? 0 : first);
  std::vector<std::string> texts;
  for (size_t t = 0; t < traces.size(); ++t) texts.push_back(hta_trace(traces[t], times[t], base));
  return texts;
}

}  // namespace cadre
