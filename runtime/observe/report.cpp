// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/report.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Rows of text with aligned columns: the first to the left, numbers to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> head) { add(std::move(head)); }

  void add(std::vector<std::string> row) {
    widths_.resize(std::max(widths_.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths_[i] = std::max(widths_[i], row[i].size());
    rows_.push_back(std::move(row));
  }

  std::string text() const {
    std::string text;
    for (const std::vector<std::string>& row : rows_) {
      std::string line = fmt::format("  {:<{}}", row.front(), widths_.front());
      for (size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths_[i]);
      text += line + '\n';
    }
    return text;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<size_t> widths_;
};

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

std::string headline_text(const OverlapReport& report) {
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

std::string bytes_of_phase(const PhaseTimes& phase) {
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
               bytes_of_phase(phase), rate ? fmt::format("{:.3f}", *rate) : "-", travels ? ms(phase.exposed) : "-",
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
  std::string text = headline_text(report) + steady_text(report) + run_text(report) + '\n' + phases_text(report);
  if (!report.layers.empty()) text += '\n' + layers_text(report);
  text += '\n' + ranks_text(report);
  if (!report.stragglers.empty()) text += '\n' + stragglers_text(report);
  text += '\n' + efficiency_text(report);
  return text + notes_text(report);
}

namespace {

using Json = nlohmann::json;

constexpr double kStandardErrors = 2;
constexpr double kShareOfStep = 0.005;

struct Mean {
  double value = 0;
  double standard_error = 0;  // over the ranks
};

using Means = std::map<std::pair<std::string, std::string>, Mean>;  // by class and phase

Means means_of(const Json& report) {
  const double num_ranks = std::max(1.0, report.at("run").at("ranks").get<double>());
  Means means;
  for (const Json& phase : report.at("phases")) {
    const auto mean = phase.at("mean_ms").get<double>();
    const double deviation = mean * phase.at("variation_percent").get<double>() / 100;
    means[{phase.at("class").get<std::string>(), phase.at("phase").get<std::string>()}] = {
        mean, deviation / std::sqrt(num_ranks)};
  }
  return means;
}

Json change_percent(double before, double after) { return before > 0 ? Json(100 * (after - before) / before) : Json(); }

std::string percent_text(const Json& value) {
  return value.is_null() ? "-" : fmt::format("{:+.1f} %", value.get<double>());
}

std::string number_text(const Json& value, int places) {
  return value.is_null() ? "-" : fmt::format("{:.{}f}", value.get<double>(), places);
}

// Figures of the headline in the order of a table.
constexpr std::pair<const char*, const char*> kFigures[] = {
    {"step_ms", "step ms"},
    {"compute_ms", "compute"},
    {"communication_ms", "communication"},
    {"hidden_percent", "hidden %"},
    {"exposed_ms", "exposed"},
    {"exposed_percent_of_step", "exposed % of step"},
    {"idle_ms", "idle"},
    {"exchange_ms", "exchange"},
    {"exchange_hidden_percent", "exchange hidden %"},
};

}  // namespace

void check_report(const Json& json, const std::string& from) {
  const bool known =
      json.is_object() && json.value("schema", Json()) == "cadre.report" && json.value("version", Json()) == 1;
  CADRE_CHECK(known, fmt::format("{} is no report of version 1", from),
              "write one with cadre report RUN_DIR --json FILE");
  try {
    static_cast<void>(means_of(json));
    for (const auto& [key, name] : kFigures) static_cast<void>(json.at("headline").at(key));
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::input, fmt::format("{} is a damaged report: {}", from, error.what()),
                "write it again with cadre report RUN_DIR --json FILE");
  }
}

Json diff_json(const Json& before, const Json& after) {
  const Means old_means = means_of(before);
  const Means new_means = means_of(after);
  Means all = old_means;
  all.insert(new_means.begin(), new_means.end());
  const double least = kShareOfStep * before.at("headline").at("step_ms").get<double>();
  std::vector<Json> changes;
  for (const auto& [key, unused] : all) {
    const auto in = [&key = key](const Means& means) {
      const auto found = means.find(key);
      return found == means.end() ? Mean() : found->second;
    };
    const Mean was = in(old_means);
    const Mean is = in(new_means);
    const double noise = kStandardErrors * std::hypot(was.standard_error, is.standard_error);
    const double moved = std::abs(is.value - was.value);
    if (moved <= noise || moved <= least) continue;
    changes.push_back({{"phase", key.second},
                       {"class", key.first},
                       {"before_ms", was.value},
                       {"after_ms", is.value},
                       {"change_percent", change_percent(was.value, is.value)},
                       {"noise_ms", noise}});
  }
  std::ranges::stable_sort(changes, std::greater(), [](const Json& one) {
    return std::abs(one.at("after_ms").get<double>() - one.at("before_ms").get<double>());
  });
  return {{"schema", "cadre.report.diff"},
          {"version", 1},
          {"before", {{"run", before.at("run")}, {"headline", before.at("headline")}}},
          {"after", {{"run", after.at("run")}, {"headline", after.at("headline")}}},
          {"changes", std::move(changes)}};
}

std::string diff_text(const Json& diff) {
  const Json& before = diff.at("before").at("headline");
  const Json& after = diff.at("after").at("headline");
  Table headlines({"", "before", "after", "change"});
  for (const auto& [key, name] : kFigures) {
    const bool both = !before.at(key).is_null() && !after.at(key).is_null();
    const bool is_share = std::string_view(name).ends_with("%") || std::string_view(name).ends_with("step");
    std::string change = "-";
    if (both && is_share) {
      change = fmt::format("{:+.1f} points", after.at(key).get<double>() - before.at(key).get<double>());
    } else if (both) {
      change = percent_text(change_percent(before.at(key).get<double>(), after.at(key).get<double>()));
    }
    headlines.add(
        {name, number_text(before.at(key), is_share ? 1 : 3), number_text(after.at(key), is_share ? 1 : 3), change});
  }
  std::string text = headlines.text();
  std::string settings;
  for (const auto& [key, value] : diff.at("before").at("run").items()) {
    static constexpr std::string_view kIncidental[] = {"clock_error_us", "config_hash", "first_step", "last_step",
                                                       "lost_events"};
    const Json other = diff.at("after").at("run").value(key, Json());
    if (other == value || std::ranges::find(kIncidental, key) != std::end(kIncidental)) continue;
    settings += fmt::format("  {} {} -> {}\n", key, value.dump(), other.dump());
  }
  if (!settings.empty()) text += "\nThe runs differ in\n" + settings;
  if (diff.at("changes").empty()) return text + "\nNo phase changed beyond the noise between ranks.\n";
  Table phases({"changed beyond noise", "class", "before ms", "after", "change", "noise"});
  for (const Json& one : diff.at("changes")) {
    phases.add({one.at("phase").get<std::string>(), one.at("class").get<std::string>(),
                number_text(one.at("before_ms"), 3), number_text(one.at("after_ms"), 3),
                percent_text(one.at("change_percent")), number_text(one.at("noise_ms"), 3)});
  }
  return text + '\n' + phases.text();
}

}  // namespace cadre
