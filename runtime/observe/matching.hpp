// SPDX-License-Identifier: Apache-2.0
// Which requests of different ranks are one operation: the exchange or reduction that they all took part in, or the two
// ends of a message of the pipeline. Found from the order in which each rank posted them, which is the same on all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre {

// What the phases of a trace are part of, for the sums of a report; in the order of its tables. Control: counts and
// metrics, small messages that carry nothing a layer computes and are not communication in the sums.
enum class PhaseClass { exchange, pipeline, reduction, control, compute };

PhaseClass class_of(std::string_view phase);
const char* name_of(PhaseClass phase_class);

// The phases of step spans.
inline constexpr std::string_view kStepPhase = "step";
inline constexpr std::string_view kSerialStepPhase = "step without overlap";
// Of the span of all ops of a step with the sums of gradients, and of those that are a forward and a backward pass at once.
inline constexpr std::string_view kAllPassesPhase = "passes";
inline constexpr std::string_view kOverlappedOpPhase = "overlapped";

// An event by its place: traces[trace].events[event].
struct EventPlace {
  size_t trace = 0;
  size_t event = 0;
  bool operator==(const EventPlace&) const = default;
};

// Flights of one operation. A message: the send, then the receive.
struct Operation {
  PhaseClass phase_class = PhaseClass::exchange;
  bool in_serial_step = false;
  std::vector<EventPlace> flights;  // at most one a rank
};

// Operations of at least two flights inside steps. Traces of one run, in the order of ranks. Messages of a schedule that
// is not known, and what a ring lost the other half of, match nothing.
std::vector<Operation> match_flights(const std::vector<RankTrace>& traces);

// The index in `trace.events` of the step span that each event begins in, or -1.
std::vector<int64_t> steps_of(const RankTrace& trace);

// How the time of a flight counts, on the clock of rank 0.
struct FlightTimes {
  int64_t begin_ns = 0;      // its posting; of a receive not before the send was posted: until then it is idle time
  int64_t last_post_ns = 0;  // when the last rank posted its part of the operation: from then on rows can travel
  int64_t end_ns = 0;        // its end; of a send not after that of the receive, though its rank may notice later
  int64_t arrival_ns = 0;    // when its rows were there: its end; of a send the end of the receive
};

// For each trace and event; of events that are no flights, or match nothing, when they begin and end.
std::vector<std::vector<FlightTimes>> flight_times(const std::vector<RankTrace>& traces,
                                                   const std::vector<Operation>& operations);

}  // namespace cadre
