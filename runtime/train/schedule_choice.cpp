// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/schedule_choice.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/median.hpp"
#include "comm/job/wait.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/train/probe.hpp"
#include "runtime/train/resume.hpp"

namespace cadre {
namespace {

constexpr double kClearlyFaster = 0.99;
constexpr double kWrongForecast = 0.1;
constexpr int64_t kCheckedSteps = 4;

// Of the checkpoint that the run goes on from; "auto" where there is none or its pipeline is another.
std::string saved_schedule(const RunConfig& config) {
  const std::optional<RunConfig> saved = config_to_resume(config);
  return saved && saved->parallel.pipeline == config.parallel.pipeline ? saved->parallel.schedule : "auto";
}

std::string broadcast_text(const Communicator& world, const std::string& mine) {
  std::vector<char> text(32);
  if (world.rank() == 0) mine.copy(text.data(), text.size() - 1);
  return wait(world.broadcast(std::move(text), 0)).data();
}

}  // namespace

ScheduleChoice choose_schedule(const RunConfig& config, const Topology& topology, const Machine& machine,
                               const LoadSkew& skew) {
  const auto shape_of = [&](const std::string& schedule) {
    RunConfig one = config;
    one.parallel.schedule = schedule;
    return shape_step(one, topology, machine, skew);
  };
  const StepPrediction serial = predict_step(shape_of("1f1b"), machine.peak_gflops(), /*overlap=*/false);
  ScheduleChoice choice = {
      .schedule = "1f1b", .overlap = false, .forecast = {serial.step_s, serial.serial_passes_s}, .reason = {}};
  std::string others;
  for (const std::string& schedule : possible_schedules(config)) {
    const StepPrediction step = predict_step(shape_of(schedule), machine.peak_gflops(), config.parallel.overlap);
    others += fmt::format(", {} {:.1f}", schedule, step.step_s * 1e3);
    const double limit = choice.overlap ? choice.forecast.step_s * kClearlyFaster : choice.forecast.step_s;
    if (step.step_s > limit) continue;
    choice.schedule = schedule;
    choice.overlap = config.parallel.overlap;
    choice.forecast = {step.step_s, step.serial_passes_s};
  }
  choice.reason = fmt::format("schedule {}{}: predicted ms a step: serial {:.1f}{}", choice.schedule,
                              choice.overlap ? "" : " without overlap", serial.step_s * 1e3, others);
  return choice;
}

RunConfig with_schedule(const Communicator& world, RunConfig config, std::string& note,
                        std::optional<StepForecast>& forecast) {
  if (config.parallel.schedule != "auto") return config;
  const std::string saved = broadcast_text(world, world.rank() == 0 ? saved_schedule(config) : "");
  if (saved != "auto") {
    config.parallel.schedule = saved;
    if (world.rank() == 0) note = fmt::format("schedule {}: as in the checkpoint that the run goes on from", saved);
    return config;
  }
  const Machine machine = measure_machine(world, config);
  const ScheduleChoice choice = choose_schedule(config, discover_topology(world), machine);
  config.parallel.schedule = broadcast_text(world, choice.schedule);
  const std::vector<int> overlap = wait(world.broadcast(std::vector<int>{choice.overlap ? 1 : 0}, 0));
  config.parallel.overlap = config.parallel.overlap && overlap.front() != 0;
  forecast = choice.forecast;
  if (world.rank() == 0) note = choice.reason;
  return config;
}

bool ForecastCheck::wants_serial_step() const {
  const auto known = static_cast<int64_t>(steps_s_.size());
  return known + 1 == std::min(kCheckedSteps, steps_left_);
}

std::string ForecastCheck::conclude(double serial_passes_s) const {
  const std::vector<double> warm(steps_s_.begin() + (steps_s_.size() > 1 ? 1 : 0), steps_s_.end());
  const auto off = [](double predicted, double measured) { return (predicted - measured) / measured; };
  const double step_s = median_of(warm);
  const double step_off = off(forecast_.step_s, step_s);
  const double serial_off = off(forecast_.serial_passes_s, serial_passes_s);
  if (std::abs(step_off) <= kWrongForecast && std::abs(serial_off) <= kWrongForecast) return "";
  return fmt::format(
      "note: parallel.schedule = auto predicted {:.1f} ms a step, measured {:.1f} ({:+.0f} %); serial passes {:.1f} "
      "ms, "
      "measured {:.1f} ({:+.0f} %)",
      forecast_.step_s * 1e3, step_s * 1e3, 100.0 * step_off, forecast_.serial_passes_s * 1e3, serial_passes_s * 1e3,
      100.0 * serial_off);
}

}  // namespace cadre
