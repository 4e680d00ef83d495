// SPDX-License-Identifier: Apache-2.0
// The trace of one rank as a value, on the clock of rank 0: what trace files hold and what the analysis reads.
//
// Activities (compute, wait) of a rank follow each other without gaps inside a step. `phase` names what they are part of:
//   forward      embedding, norm, attention, router, dispatch, shared experts, experts, combine, ffn, head, expert counts
//   backward     the same with " gradient" (of inputs) or " weights"
//   pipeline     send activations, receive activations, send gradients, receive gradients
//   step         data, metrics, gradient norm, optimizer, other; gradient reduction, parameter gather, and each with
//                "embedding ", "head " or "expert " before it
// A step span has the phase "step", or "step without overlap" where the same step also ran serially for comparison; op
// spans have the phase forward, backward, overlapped, backward input, backward weight, send or receive, and all of a step
// lie in one with the phase "passes".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/base/trace.hpp"

namespace cadre {

struct TracedEvent {
  TraceKind kind = TraceKind::compute;
  std::string phase;
  int64_t step = -1;
  int micro_batch = -1;
  int layer = -1;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  int64_t bytes = 0;  // flight: sent to other ranks

  bool operator==(const TracedEvent&) const = default;
};

// What the run was: the same on all ranks.
struct TracedRun {
  std::string cadre_version;
  std::string mpi;  // version line of the library, or "threads"
  int num_ranks = 0;
  int num_hosts = 0;
  int pipeline = 1;
  int data = 1;
  int expert = 1;
  std::string schedule;
  int num_micro_batches = 0;
  std::string exchange;
  int threads = 1;  // BLAS threads of a rank
  int64_t seed = 0;
  std::string config_hash;

  bool operator==(const TracedRun&) const = default;
};

struct RankTrace {
  TracedRun run;
  int rank = 0;
  std::string host;
  int64_t clock_offset_begin_ns = 0;  // added to this host's clock, as found when the trace began and when it ended
  int64_t clock_offset_end_ns = 0;
  int64_t clock_error_ns = 0;  // half of the shortest round trip to rank 0
  uint64_t num_lost = 0;       // events that the ring overwrote
  int64_t written_at = 0;      // seconds since 1970; 0: not known
  std::string machine;         // the same for hosts that are namespaces of one machine; "": not known
  std::vector<int> cores;      // that the rank may use, by their first cpu; none: not known
  std::vector<TracedEvent> events;

  bool operator==(const RankTrace&) const = default;
};

// What trace files call things; their writer and their reader share it.
inline constexpr const char* kTraceSchema = "cadre.trace";
inline constexpr int kTraceVersion = 1;

// In the order of TraceKind.
inline constexpr std::array<std::string_view, kNumTraceKinds> kTraceKindNames = {"compute", "wait", "step", "op",
                                                                                 "flight"};

inline std::string_view name_of(TraceKind kind) { return kTraceKindNames.at(static_cast<size_t>(kind)); }

}  // namespace cadre
