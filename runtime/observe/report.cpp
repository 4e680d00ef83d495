// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "runtime/observe/table.hpp"

namespace cadre {
namespace {

// From which NOTE lines speak.
constexpr double kExposedLimitPercent = 10;
constexpr double kIdleLimitPercent = 10;
constexpr double kLoadBalanceLimit = 0.8;
constexpr double kGigabyte = 1e9;

// Milliseconds with as many places as a step of this length deserves.
class Milliseconds {
 public:
  explicit Milliseconds(double step) : places_(step >= 100 ? 1 : step >= 10 ? 2 : 3) {}
  std::string operator()(double value) const { return fmt::format("{:.{}f}", value, places_); }

 private:
  int places_;
};

std::string percent_text(std::optional<double> value) { return value ? fmt::format("{:.1f} %", *value) : "-"; }

std::string headline(const OverlapReport& report) {
  const StepTimes& times = report.times;
  const Milliseconds ms(times.step);
  return fmt::format(
      "step {} ms | compute {} | communication {} | hidden {} ({}) | exposed {} ({} of step) | idle {}\n",
      ms(times.step), ms(times.compute), ms(times.communication), ms(times.hidden),
      percent_text(percent(times.hidden, times.communication)), ms(times.exposed),
      percent_text(percent(times.exposed, times.step)), ms(times.idle));
}

std::string steady_text(const OverlapReport& report) {
  if (!report.steady) return "";
  const SteadyTimes& steady = *report.steady;
  const Milliseconds ms(report.times.step);
  return fmt::format(
      "steady state ({} of step): {} ms | compute {} | exchange {} | hidden {} ({}) | {:.2f} times the longer one\n",
      percent_text(percent(steady.time, report.times.step)), ms(steady.time), ms(steady.compute), ms(steady.exchange),
      ms(steady.exchange_hidden), percent_text(percent(steady.exchange_hidden, steady.exchange)),
      steady.time / std::max(steady.compute, steady.exchange));
}

std::string run_text(const OverlapReport& report) {
  const TracedRun& run = report.run;
  const std::string steps =
      report.num_steps == 1 ? fmt::format("step {}", report.first_step)
                            : fmt::format("{} steps, {} to {}", report.num_steps, report.first_step, report.last_step);
  return fmt::format(
      "{}; {} ranks on {} hosts: pipeline {}, data {}, expert {}; schedule {}, {} micro-batches; exchange {}; clocks "
      "to "
      "{:.1f} us\n",
      steps, run.num_ranks, run.num_hosts, run.pipeline, run.data, run.expert, run.schedule, run.num_micro_batches,
      run.exchange, report.clock_error_us);
}

std::string bytes_text(const PhaseTimes& phase) {
  if (phase.bytes == 0) return "-";
  return phase.bytes >= 0.1 * kGigabyte ? fmt::format("{:.2f} GB", phase.bytes / kGigabyte)
                                        : fmt::format("{:.3f} MB", phase.bytes * 1e-6);
}

std::string phases_text(const OverlapReport& report) {
  const Milliseconds ms(report.times.step);
  Table table({"phase", "class", "min ms", "mean", "max", "%var", "of step", "sent", "GB/s", "exposed", "hidden"});
  for (const PhaseTimes& phase : report.phases) {
    const bool travels = phase.phase_class != PhaseClass::compute;
    const auto rate = gigabytes_per_second(phase, report.ranks.size());
    table.add({phase.phase, name_of(phase.phase_class), ms(phase.min), ms(phase.mean), ms(phase.max),
               fmt::format("{:.1f}", phase.variation_percent), percent_text(percent(phase.mean, report.times.step)),
               bytes_text(phase), rate ? fmt::format("{:.3f}", *rate) : "-", travels ? ms(phase.exposed) : "-",
               travels ? percent_text(percent(phase.hidden, phase.mean)) : "-"});
  }
  return table.text();
}

std::string layers_text(const OverlapReport& report) {
  const Milliseconds ms(report.times.step);
  Table table({"layer", "compute ms", "communication", "exposed", "hidden", "tokens max/mean"});
  for (const LayerTimes& layer : report.layers) {
    table.add({fmt::format("{}", layer.layer), ms(layer.compute), ms(layer.communication), ms(layer.exposed),
               percent_text(percent(layer.hidden, layer.communication)),
               layer.tokens_max_over_mean ? fmt::format("{:.2f}", *layer.tokens_max_over_mean) : "-"});
  }
  return table.text();
}

// Of many ranks those that wait longest.
std::string ranks_text(const OverlapReport& report) {
  constexpr size_t kShown = 16;
  const Milliseconds ms(report.times.step);
  std::vector<RankTimes> shown = report.ranks;
  if (shown.size() > kShown) {
    std::ranges::stable_sort(shown, std::greater(),
                             [](const RankTimes& one) { return one.times.exposed + one.times.idle; });
    shown.resize(kShown);
  }
  Table table({"rank", "step ms", "compute", "communication", "hidden", "skew", "transfer", "idle"});
  for (const RankTimes& rank : shown) {
    const StepTimes& times = rank.times;
    table.add({fmt::format("{} @ {}", rank.rank, rank.host), ms(times.step), ms(times.compute), ms(times.communication),
               percent_text(percent(times.hidden, times.communication)), ms(times.skew), ms(times.transfer),
               ms(times.idle)});
  }
  const size_t left_out = report.ranks.size() - shown.size();
  return table.text() + (left_out > 0 ? fmt::format("  and {} ranks that wait less\n", left_out) : "");
}

std::string stragglers_text(const OverlapReport& report) {
  constexpr size_t kShown = 8;
  Table table({"last to post", "times", "of all", "late us"});
  for (size_t i = 0; i < report.stragglers.size() && i < kShown; ++i) {
    const Straggler& one = report.stragglers[i];
    table.add({fmt::format("{} @ {}", one.rank, one.host), fmt::format("{}", one.times_last),
               percent_text(one.share_percent), fmt::format("{:.1f}", one.mean_late_us)});
  }
  return table.text();
}

std::string efficiency_text(const OverlapReport& report) {
  const double balance = report.load_balance;
  const double communication = report.communication_efficiency;
  const Milliseconds ms(report.times.step);
  std::string text = fmt::format("load balance {:.3f} x communication efficiency {:.3f} = parallel efficiency {:.3f}\n",
                                 balance, communication, balance * communication);
  if (report.bubble) {
    text += fmt::format("bubble: idle {} ms measured, {} by simulation of the schedule, {} by formula {}\n",
                        ms(report.bubble->measured), ms(report.bubble->simulated), ms(report.bubble->formula),
                        report.bubble->formula_text);
  }
  if (report.without_overlap) {
    const StepTimes& serial = report.without_overlap->times;
    text += fmt::format(
        "without overlap: passes {} ms instead of {}, exposed {}, exchange {} ({} hidden); overlap is {:.2f} times as "
        "fast\n",
        ms(serial.step), ms(report.without_overlap->overlapped), ms(serial.exposed), ms(serial.exchange),
        percent_text(percent(serial.exchange_hidden, serial.exchange)), report.without_overlap->speed_up);
  }
  return text;
}

std::string exposed_advice(const OverlapReport& report) {
  const TracedRun& run = report.run;
  if (report.times.skew > report.times.transfer) {
    return "ranks wait for others that post late: even the load (model.bias_update_rate, model.aux_loss_alpha), or "
           "look "
           "at the hosts that are last to post";
  }
  if (run.pipeline == 1 && run.schedule != "pair") {
    return "set parallel.schedule=pair with train.micro_batches of 2 or more";
  }
  if (run.pipeline > 1 && !run.schedule.starts_with("dualpipe")) {
    return "set parallel.schedule=dualpipe, or raise train.micro_batches";
  }
  return "raise train.micro_batches, or send less: exchange.dispatch_format=bf16, exchange.strategy=auto";
}

std::string notes_text(const OverlapReport& report) {
  std::string text;
  const StepTimes& times = report.times;
  if (const auto exposed = percent(times.exposed, times.step); exposed && *exposed > kExposedLimitPercent) {
    text += fmt::format(
        "NOTE: {} of the step is exposed communication (limit {:.0f} %, {} of it waiting for late ranks): {}\n",
        percent_text(exposed), kExposedLimitPercent, percent_text(percent(times.skew, times.exposed)),
        exposed_advice(report));
  }
  if (const auto idle = percent(times.idle, times.step); idle && *idle > kIdleLimitPercent) {
    text += fmt::format(
        "NOTE: ranks are idle for {} of the step (limit {:.0f} %): {}\n", percent_text(idle), kIdleLimitPercent,
        report.run.pipeline > 1 ? "raise train.micro_batches, or set parallel.schedule to zb1p or dualpipe"
                                : "something outside of the step's requests holds them up");
  }
  if (report.load_balance < kLoadBalanceLimit) {
    text += fmt::format(
        "NOTE: on average ranks compute {:.2f} of what the busiest does (limit {:.2f}): raise model.bias_update_rate "
        "or "
        "model.aux_loss_alpha if its experts have more tokens, else look at its host\n",
        report.load_balance, kLoadBalanceLimit);
  }
  if (report.lost_events > 0) {
    text += fmt::format("NOTE: {} events were lost, and with them the first steps: trace fewer steps at a time\n",
                        report.lost_events);
  }
  return text;
}

}  // namespace

std::string report_text(const OverlapReport& report) {
  std::string text = headline(report) + steady_text(report) + run_text(report) + '\n' + phases_text(report);
  if (!report.layers.empty()) text += '\n' + layers_text(report);
  text += '\n' + ranks_text(report);
  if (!report.stragglers.empty()) text += '\n' + stragglers_text(report);
  text += '\n' + efficiency_text(report);
  return text + notes_text(report);
}

}  // namespace cadre
