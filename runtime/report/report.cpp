// SPDX-License-Identifier: Apache-2.0
#include "runtime/report/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "runtime/observe/process.hpp"
#include "runtime/report/text_table.hpp"

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

// "4 ranks on 2 cores"
std::string cores_text(const OverlapReport& report) {
  const TracedRun& run = report.run;
  return fmt::format("{} ranks{} on {} cores", run.num_ranks,
                     run.threads > 1 ? fmt::format(" of {} threads", run.threads) : "", report.cores->number);
}

bool has_communication(const OverlapReport& report) {
  return report.run.num_ranks > 1 && report.times.communication > 0;
}

std::string speed_up_text(const OverlapReport& report) {
  if (!report.speed_up) return "speed-up over serial -";
  return fmt::format("speed-up over serial {}{:.2f}", report.speed_up->is_measured ? "" : "about ",
                     report.speed_up->ratio);
}

std::string headline_text(const OverlapReport& report) {
  const StepTimes& times = report.times;
  const Milliseconds ms(times.step);
  std::vector<std::string> parts = {fmt::format("step {} ms", ms(times.step))};
  if (has_communication(report)) {
    parts.push_back(speed_up_text(report));
    parts.push_back(fmt::format("exposed {} ms ({} of step; skew {}, transfer {})", ms(times.exposed),
                                percent_text(percent(times.exposed, times.step)), ms(times.skew), ms(times.transfer)));
  } else {
    parts.emplace_back("no communication");
  }
  if (report.tokens_per_second) parts.push_back(fmt::format("{:.0f} tokens/s", *report.tokens_per_second));
  if (report.cores && report.cores->are_shared) parts.push_back(cores_text(report));
  return fmt::format("{}\n", fmt::join(parts, " | "));
}

std::string whole_step_text(const OverlapReport& report) {
  const StepTimes& times = report.times;
  const Milliseconds ms(times.step);
  std::string text = fmt::format("whole step: compute {} ms | ", ms(times.compute));
  if (has_communication(report)) {
    text += fmt::format("communication {} | hidden {} ({}) | exposed {} | control {} | ", ms(times.communication),
                        ms(times.hidden), percent_text(percent(times.hidden, times.communication)), ms(times.exposed),
                        ms(times.control));
  }
  return text + fmt::format("idle {}\n", ms(times.idle));
}

// What the words above mean.
std::string definitions_text(const OverlapReport& report) {
  if (!has_communication(report)) return "";
  std::string text;
  if (report.speed_up && report.speed_up->is_measured) {
    text += fmt::format("  serial: {} ms, the same steps with their passes run one op after the other\n",
                        Milliseconds(report.times.step)(report.speed_up->serial));
  } else if (report.speed_up) {
    text += fmt::format(
        "  serial: {} ms, estimated: compute + communication in flight, one after the other (trace.compare=true "
        "measures it)\n",
        Milliseconds(report.times.step)(report.speed_up->serial));
  }
  text +=
      "  hidden: communication in flight during computation; exposed: without\n"
      "  skew: exposed until the last rank posted, of which a faster network saves nothing; transfer: the rest\n"
      "  control: waits for counts and metrics; idle: no computation, no communication, no such wait\n";
  return text;
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

std::string bytes_of_phase(const PhaseTimes& phase) {
  if (phase.bytes == 0) return "-";
  return phase.bytes >= 0.1 * kGigabyte ? fmt::format("{:.2f} GB", phase.bytes / kGigabyte)
                                        : fmt::format("{:.3f} MB", phase.bytes * 1e-6);
}

std::string phases_text(const OverlapReport& report) {
  const Milliseconds ms(report.times.step);
  TextTable table(
      {"phase", "class", "min ms", "mean", "max", "%var", "of step", "sent", "GB/s a message", "exposed", "hidden"});
  for (const PhaseTimes& phase : report.phases) {
    const bool travels = phase.phase_class != PhaseClass::compute;
    const auto rate = phase.gigabytes_per_second;
    table.add({phase.phase, name_of(phase.phase_class), ms(phase.min), ms(phase.mean), ms(phase.max),
               fmt::format("{:.1f}", phase.variation_percent), percent_text(percent(phase.mean, report.times.step)),
               bytes_of_phase(phase), rate ? fmt::format("{:.3f}", *rate) : "-", travels ? ms(phase.exposed) : "-",
               travels ? percent_text(percent(phase.hidden, phase.mean)) : "-"});
  }
  return table.text();
}

std::string layers_text(const OverlapReport& report) {
  const Milliseconds ms(report.times.step);
  TextTable table({"layer", "compute ms", "communication", "exposed", "hidden", "tokens max/mean"});
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
  TextTable table({"rank", "step ms", "compute", "communication", "hidden", "skew", "transfer", "control", "idle"});
  for (const RankTimes& rank : shown) {
    const StepTimes& times = rank.times;
    table.add({fmt::format("{} @ {}", rank.rank, rank.host), ms(times.step), ms(times.compute), ms(times.communication),
               percent_text(percent(times.hidden, times.communication)), ms(times.skew), ms(times.transfer),
               ms(times.control), ms(times.idle)});
  }
  const size_t left_out = report.ranks.size() - shown.size();
  return table.text() + (left_out > 0 ? fmt::format("  and {} ranks that wait less\n", left_out) : "");
}

std::string stragglers_text(const OverlapReport& report) {
  constexpr size_t kShown = 8;
  TextTable table({"last to post", "times", "of all", "late us"});
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
    text += fmt::format(
        "bubble: a rank works on no pass for {} ms measured, {} by simulation of the schedule, {} by formula {}\n"
        "  from the first pass on any rank to the end of the last, messages of the pipeline in flight or not; idle "
        "({}) is of the whole step, and without the time in which something is in flight\n",
        ms(report.bubble->measured), ms(report.bubble->simulated), ms(report.bubble->formula),
        report.bubble->formula_text, ms(report.times.idle));
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

}  // namespace

std::vector<std::string> report_notes(const OverlapReport& report) {
  std::vector<std::string> notes;
  const StepTimes& times = report.times;
  if (report.cores && report.cores->are_shared) {
    notes.push_back(fmt::format(
        "{}: ranks take turns on a core, and what one waits for another computes; no figure here is that of a machine "
        "with a core for each",
        cores_text(report)));
  }
  if (const auto exposed = percent(times.exposed, times.step); exposed && *exposed > kExposedLimitPercent) {
    notes.push_back(
        fmt::format("{} of the step is exposed communication (limit {:.0f} %, {} of it waiting for late ranks): {}",
                    percent_text(exposed), kExposedLimitPercent, percent_text(percent(times.skew, times.exposed)),
                    exposed_advice(report)));
  }
  if (report.speed_up && report.speed_up->is_measured && report.speed_up->ratio < 1) {
    notes.push_back(fmt::format(
        "overlap makes the step slower: {:.2f} times as fast as serial. Set parallel.overlap=false, or another "
        "parallel.schedule",
        report.speed_up->ratio));
  }
  if (const auto idle = percent(times.idle, times.step); idle && *idle > kIdleLimitPercent) {
    notes.push_back(
        fmt::format("ranks are idle for {} of the step (limit {:.0f} %): {}", percent_text(idle), kIdleLimitPercent,
                    report.run.pipeline > 1 ? "raise train.micro_batches, or set parallel.schedule to zb1p or dualpipe"
                                            : "something outside of the step's requests holds them up"));
  }
  if (report.load_balance < kLoadBalanceLimit) {
    notes.push_back(fmt::format(
        "on average ranks compute {:.2f} of what the busiest does (limit {:.2f}): raise model.bias_update_rate or "
        "model.aux_loss_alpha if its experts have more tokens, else look at its host",
        report.load_balance, kLoadBalanceLimit));
  }
  if (report.lost_events > 0) {
    notes.push_back(fmt::format("{} events were lost, and with them the first steps: trace fewer steps at a time",
                                report.lost_events));
  }
  return notes;
}

namespace {

std::string moves_text(const std::vector<LoggedMove>& moves) {
  constexpr size_t kMostRows = 20;
  const auto number = [](const std::optional<double>& value) { return value ? fmt::format("{:.2f}", *value) : "-"; };
  TextTable table({"moved in step", "experts", "MiB", "stall ms", "ranks max/mean", "next step", "gain ms", "got ms"});
  size_t rows = 0;
  int64_t refused = 0;
  for (const LoggedMove& move : moves) {
    refused += move.moved == 0 ? 1 : 0;
    if (move.moved == 0 || ++rows > kMostRows) continue;
    table.add({fmt::format("{}", move.step), fmt::format("{}", move.moved),
               fmt::format("{:.2f}", static_cast<double>(move.bytes) / kMiB), fmt::format("{:.2f}", move.stall_ms),
               number(move.load_before), number(move.load_after), number(move.gain_ms), number(move.got_ms)});
  }
  std::string text = rows == 0 ? "" : table.text();
  if (rows > kMostRows) text += fmt::format("{} further moves\n", rows - kMostRows);
  if (refused > 0) text += fmt::format("{} moves refused: they would have cost more than they save\n", refused);
  return text;
}

}  // namespace

std::string report_text(const OverlapReport& report) {
  std::string text = headline_text(report) + steady_text(report) + whole_step_text(report) + definitions_text(report) +
                     run_text(report) + '\n' + phases_text(report);
  if (!report.layers.empty()) text += '\n' + layers_text(report);
  text += '\n' + ranks_text(report);
  if (!report.stragglers.empty()) text += '\n' + stragglers_text(report);
  text += '\n' + efficiency_text(report);
  if (!report.moves.empty()) text += '\n' + moves_text(report.moves);
  for (const std::string& note : report_notes(report)) text += fmt::format("NOTE: {}\n", note);
  return text;
}

}  // namespace cadre
