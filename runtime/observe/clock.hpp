// SPDX-License-Identifier: Apache-2.0
// The clocks of different hosts start anywhere and drift. A trace is put on the clock of rank 0 by the offsets that were
// measured when it began and when it ended.
#pragma once

#include <cstdint>
#include <functional>

#include "comm/base/trace.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

struct ClockOffset {
  int64_t at_ns = 0;      // when, on this rank's clock
  int64_t offset_ns = 0;  // what to add to this rank's clock for that of rank 0
  int64_t error_ns = 0;   // at most; half of the round trip that it was measured with
};

// Of a rank's trace: measured at its begin and at its end.
struct ClockOffsets {
  ClockOffset begin;
  ClockOffset end;

  int64_t error_ns() const;
};

// Collective. Rank 0 asks the others for their time, one after the other; the shortest of several round trips counts. An
// offset within its own error is 0: ranks of one host read one clock. Throws ErrorKind::timeout as every wait does.
ClockOffset measure_clock_offset(const Communicator& world, double deadline_seconds = kDefaultDeadlineSeconds,
                                 const std::function<int64_t()>& clock_ns = trace_clock_ns);

// A time of this rank's clock on that of rank 0; between the two measurements by a straight line, before and after them
// by the nearer one. Never reverses the order of two times.
int64_t on_clock_of_rank_0(const ClockOffsets& offsets, int64_t ns);

}  // namespace cadre
