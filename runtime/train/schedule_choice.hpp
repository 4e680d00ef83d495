// SPDX-License-Identifier: Apache-2.0
// parallel.schedule = auto: before a run begins its machine is measured, the step of each schedule that can run is predicted, and
// the fastest is taken. The choice is kept with the run, so that a resume takes the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/plan/machine.hpp"
#include "runtime/plan/predict_step.hpp"

namespace cadre {

// What was predicted of the schedule that a run takes.
struct StepForecast {
  double step_s = 0.0;
  double serial_passes_s = 0.0;
};

struct ScheduleChoice {
  std::string schedule;
  bool overlap = true;
  StepForecast forecast;
  std::string reason;  // one line
};

// The fastest schedule of those that can run; of two that differ by less than 1 % the one that stands first in the list of
// schedules. None that is predicted to take longer than 1f1b run serially; where all are, that. Pure.
ScheduleChoice choose_schedule(const RunConfig& config, const Topology& topology, const Machine& machine,
                               const LoadSkew& skew = {});

// `config` with a choice in place of "auto": that of the checkpoint which the run goes on from, where that has the same pipeline;
// else by measurement. `forecast` is filled in the second case; `note` on rank 0 says what was chosen and why. Collective over
// `world`; the same on all ranks.
RunConfig with_schedule(const Communicator& world, RunConfig config, std::string& note,
                        std::optional<StepForecast>& forecast);

// Compares a forecast with the first steps of a run, one of which runs serially too. The first step warms up and does not count.
class ForecastCheck {
 public:
  ForecastCheck(const StepForecast& forecast, int64_t steps_left) : forecast_(forecast), steps_left_(steps_left) {}

  // Of the step to come: enough steps are known with it, or it is the last.
  bool wants_serial_step() const;
  void add(double step_s) { steps_s_.push_back(step_s); }
  // `serial_passes_s`: the passes of one step, run serially. A line where it or the median step is more than 10 % off the forecast;
  // else empty.
  std::string conclude(double serial_passes_s) const;

 private:
  StepForecast forecast_;
  int64_t steps_left_;
  std::vector<double> steps_s_;
};

}  // namespace cadre
