// SPDX-License-Identifier: Apache-2.0
// What a trace says about overlap: how long ranks computed, how long requests were in flight, how much of that was
// hidden behind computation, and who waited for whom. Times are means over the traced steps, and over ranks where a
// figure is not of one rank. With one rank nothing travels, and there is no communication.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "runtime/observe/matching.hpp"
#include "runtime/observe/metrics_file.hpp"
#include "runtime/observe/rank_trace.hpp"
#include "runtime/report/step_sums.hpp"

namespace cadre {

// Of a step on a rank, in ms: step = compute + exposed + control + idle, communication = hidden + exposed, and
// exposed = skew + transfer. Counts and metrics are control traffic and no communication.
struct StepTimes {
  double step = 0;
  double compute = 0;  // any activity that is not a wait
  double communication =
      0;                // a request is in flight; a message of the pipeline from its send to the end of its receive
  double hidden = 0;    // both
  double exposed = 0;   // communication without computation
  double idle = 0;      // nothing is in flight, and the rank does not compute
  double exchange = 0;  // the part of communication that is dispatch and combine
  double exchange_hidden = 0;
  double skew = 0;      // exposed, and a rank had not yet posted its part: a faster network saves none of it
  double transfer = 0;  // exposed otherwise
  double control = 0;   // a wait for control traffic, without communication
};

// `part` of `whole` in percent; none where there is no whole.
std::optional<double> percent(double part, double whole);

// Of communication, the part that computation hid, by the definition of the OSU benchmarks: from times with and without
// overlap, not from what was in flight. In [0, 100]; 0 where overlapping took at least as long as one after the other.
double osu_overlap_percent(double overlapped, double compute, double communication, double serial);

// Compute phases: time of activities. The others: time in flight.
struct PhaseTimes {
  std::string phase;
  PhaseClass phase_class = PhaseClass::compute;
  double min = 0;  // over ranks
  double mean = 0;
  double max = 0;
  double variation_percent = 0;  // standard deviation / mean
  double bytes = 0;              // sent a step by all ranks together
  double exposed = 0;            // mean over ranks, as is `hidden`
  double hidden = 0;
  // Of its messages, each in its transfer time: from the last post to its arrival. None where nothing is sent.
  std::optional<double> gigabytes_per_second = std::nullopt;
};

struct LayerTimes {
  int layer = 0;
  double compute = 0;
  double communication = 0;
  double exposed = 0;
  double hidden = 0;
  std::optional<double> tokens_max_over_mean;  // of its experts
};

struct RankTimes {
  int rank = 0;
  std::string host;
  StepTimes times;
};

// The rank was the last to post its part of `times_last` operations, by `mean_late_us` after the mean of the others.
struct Straggler {
  int rank = 0;
  std::string host;
  int64_t times_last = 0;
  double share_percent = 0;  // of all operations
  double mean_late_us = 0;
};

// Inside the ops that overlap a forward with a backward pass: the schedule without its ramps. Mean over ranks of a step.
struct SteadyTimes {
  double time = 0;
  double compute = 0;
  double exchange = 0;  // dispatch and combine in flight
  double exchange_hidden = 0;
};

// The passes of the same steps run serially, without optimiser and metrics.
struct SerialSteps {
  StepTimes times;
  double overlapped = 0;  // what the same passes took with overlap
  double speed_up = 0;    // serial / overlapped
  double whole_step = 0;  // the step with these passes in the place of those with overlap
  double whole_speed_up = 0;
};

// The whole step against the same step without overlap. Measured where the run also ran its steps serially; else estimated:
// compute + communication in flight, one after the other.
struct SpeedUp {
  double serial = 0;  // ms
  double ratio = 0;   // serial / step
  bool is_measured = false;
};

// That the ranks may use, over all machines.
struct Cores {
  int number = 0;
  bool are_shared = false;  // on some machine ranks have more threads than cores
};

// A layer over the steps of the whole run: how many slots each expert had.
struct LoadOverTime {
  int layer = 0;
  std::vector<int64_t> first_steps;          // of each column; consecutive steps may be one column
  std::vector<std::vector<int64_t>> counts;  // by column and expert
};

struct OverlapReport {
  TracedRun run;
  std::string name;        // of the run, and what it trains; read from its folder
  std::string model;       // in a few words
  int64_t written_at = 0;  // when the trace was written, in seconds since 1970; 0: not known
  int64_t first_step = 0;
  int64_t last_step = 0;
  int64_t num_steps = 0;
  double clock_error_us = 0;  // of the rank that knows it worst
  uint64_t lost_events = 0;
  StepTimes times;                  // mean over ranks
  std::optional<SpeedUp> speed_up;  // none with one rank, and in a pipeline only where it was measured
  std::optional<double> tokens_per_second;
  std::optional<double> loss;  // mean over the steps
  std::optional<Cores> cores;
  std::optional<SteadyTimes> steady;  // where the schedule overlaps ops
  std::vector<PhaseTimes> phases;
  std::vector<LayerTimes> layers;
  std::vector<RankTimes> ranks;
  double load_balance = 0;              // mean / max over ranks of compute
  double communication_efficiency = 0;  // max over ranks of compute / max over ranks of step
  std::vector<Straggler> stragglers;    // those that were last oftenest come first
  std::optional<Bubble> bubble;         // of a pipeline
  std::optional<SerialSteps> without_overlap;
  std::vector<StepBalance> balance;  // of every step of the run, or every n-th where there are more than 1,000
  std::vector<LayerLoad> expert_load;
  std::vector<LoadOverTime>
      load_over_time;             // of at most 4 layers, those whose busiest expert is furthest above the mean
  std::vector<LoggedMove> moves;  // of experts, in the whole run, refused ones too
};

struct StepRange {
  int64_t first = std::numeric_limits<int64_t>::min();
  int64_t last = std::numeric_limits<int64_t>::max();
};

// Of the steps in `range` that every rank has whole. Throws where there is none, a rank is missing, or the traces are of
// different runs. `metrics` adds the balance of experts and ranks.
OverlapReport analyse_overlap(const std::vector<RankTrace>& traces, const StepRange& range = {},
                              const std::vector<LoggedStep>& metrics = {});

}  // namespace cadre
