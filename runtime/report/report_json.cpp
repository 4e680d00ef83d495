// SPDX-License-Identifier: Apache-2.0
#include <fmt/chrono.h>
#include <nlohmann/json.hpp>

#include <ctime>

#include "runtime/observe/chrome_trace.hpp"
#include "runtime/report/report.hpp"

namespace cadre {
namespace {

nlohmann::json or_null(std::optional<double> value) { return value ? nlohmann::json(*value) : nlohmann::json(); }

nlohmann::json text_or_null(const std::string& text) { return text.empty() ? nlohmann::json() : nlohmann::json(text); }

// "2026-11-30T12:00:00Z"
nlohmann::json date_json(int64_t seconds_since_1970) {
  if (seconds_since_1970 == 0) return {};
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds_since_1970)));
}

nlohmann::json reported_run_json(const OverlapReport& report) {
  nlohmann::json run = run_json(report.run);
  run["name"] = text_or_null(report.name);
  run["model"] = text_or_null(report.model);
  run["date"] = date_json(report.written_at);
  run["cores"] = report.cores ? nlohmann::json(report.cores->number) : nlohmann::json();
  run["shares_cores"] = report.cores ? nlohmann::json(report.cores->are_shared) : nlohmann::json();
  run["first_step"] = report.first_step;
  run["last_step"] = report.last_step;
  run["clock_error_us"] = report.clock_error_us;
  run["lost_events"] = report.lost_events;
  return run;
}

nlohmann::json headline_json(const OverlapReport& report) {
  const StepTimes& times = report.times;
  const auto& speed_up = report.speed_up;
  return {{"step_ms", times.step},
          {"serial_step_ms", speed_up ? nlohmann::json(speed_up->serial) : nlohmann::json()},
          {"serial", speed_up ? nlohmann::json(speed_up->is_measured ? "measured" : "estimated") : nlohmann::json()},
          {"speed_up", speed_up ? nlohmann::json(speed_up->ratio) : nlohmann::json()},
          {"tokens_per_second", or_null(report.tokens_per_second)},
          {"loss", or_null(report.loss)},
          {"compute_ms", times.compute},
          {"communication_ms", times.communication},
          {"hidden_ms", times.hidden},
          {"hidden_percent", or_null(percent(times.hidden, times.communication))},
          {"exposed_ms", times.exposed},
          {"exposed_percent_of_step", or_null(percent(times.exposed, times.step))},
          {"skew_ms", times.skew},
          {"transfer_ms", times.transfer},
          {"control_ms", times.control},
          {"idle_ms", times.idle},
          {"exchange_ms", times.exchange},
          {"exchange_hidden_percent", or_null(percent(times.exchange_hidden, times.exchange))}};
}

nlohmann::json steady_json(const std::optional<SteadyTimes>& steady) {
  if (!steady) return {};
  return {{"time_ms", steady->time},
          {"compute_ms", steady->compute},
          {"exchange_ms", steady->exchange},
          {"exchange_hidden_ms", steady->exchange_hidden},
          {"exchange_hidden_percent", or_null(percent(steady->exchange_hidden, steady->exchange))}};
}

nlohmann::json phase_json(const PhaseTimes& phase, const OverlapReport& report) {
  const bool travels = phase.phase_class != PhaseClass::compute;
  const auto if_travels = [&](double value) { return travels ? nlohmann::json(value) : nlohmann::json(); };
  return {{"phase", phase.phase},
          {"class", name_of(phase.phase_class)},
          {"min_ms", phase.min},
          {"mean_ms", phase.mean},
          {"max_ms", phase.max},
          {"variation_percent", phase.variation_percent},
          {"percent_of_step", or_null(percent(phase.mean, report.times.step))},
          {"bytes", if_travels(phase.bytes)},
          {"message_gigabytes_per_second", or_null(phase.gigabytes_per_second)},
          {"exposed_ms", if_travels(phase.exposed)},
          {"hidden_percent", travels ? or_null(percent(phase.hidden, phase.mean)) : nlohmann::json()}};
}

nlohmann::json layer_json(const LayerTimes& layer) {
  return {{"layer", layer.layer},
          {"compute_ms", layer.compute},
          {"communication_ms", layer.communication},
          {"exposed_ms", layer.exposed},
          {"hidden_percent", or_null(percent(layer.hidden, layer.communication))},
          {"tokens_max_over_mean", or_null(layer.tokens_max_over_mean)}};
}

nlohmann::json rank_times_json(const RankTimes& rank) {
  const StepTimes& times = rank.times;
  return {{"rank", rank.rank},
          {"host", rank.host},
          {"step_ms", times.step},
          {"compute_ms", times.compute},
          {"communication_ms", times.communication},
          {"hidden_percent", or_null(percent(times.hidden, times.communication))},
          {"skew_ms", times.skew},
          {"transfer_ms", times.transfer},
          {"control_ms", times.control},
          {"idle_ms", times.idle},
          {"compute_percent_of_step", or_null(percent(times.compute, times.step))}};
}

nlohmann::json bubble_json(const std::optional<Bubble>& bubble) {
  if (!bubble) return {};
  return {{"measured_idle_ms", bubble->measured},
          {"simulated_idle_ms", bubble->simulated},
          {"formula_idle_ms", bubble->formula},
          {"formula", bubble->formula_text}};
}

nlohmann::json serial_json(const std::optional<SerialSteps>& serial) {
  if (!serial) return {};
  return {{"passes_ms", serial->times.step},
          {"overlapped_passes_ms", serial->overlapped},
          {"exposed_ms", serial->times.exposed},
          {"exchange_ms", serial->times.exchange},
          {"exchange_hidden_percent", or_null(percent(serial->times.exchange_hidden, serial->times.exchange))},
          {"speed_up", serial->speed_up},
          {"step_ms", serial->whole_step},
          {"step_speed_up", serial->whole_speed_up}};
}

template <class Value, class ToJson>
nlohmann::json list_json(const std::vector<Value>& values, ToJson&& to_json) {
  nlohmann::json list = nlohmann::json::array();
  for (const Value& value : values) list.push_back(to_json(value));
  return list;
}

}  // namespace

nlohmann::json report_json(const OverlapReport& report) {
  return {{"schema", "cadre.report"},
          {"version", kReportVersion},
          {"run", reported_run_json(report)},
          {"headline", headline_json(report)},
          {"steady", steady_json(report.steady)},
          {"phases", list_json(report.phases, [&](const PhaseTimes& one) { return phase_json(one, report); })},
          {"layers", list_json(report.layers, layer_json)},
          {"ranks", list_json(report.ranks, rank_times_json)},
          {"efficiency",
           {{"load_balance", report.load_balance},
            {"communication", report.communication_efficiency},
            {"parallel", report.load_balance * report.communication_efficiency}}},
          {"stragglers", list_json(report.stragglers,
                                   [](const Straggler& one) -> nlohmann::json {
                                     return {{"rank", one.rank},
                                             {"host", one.host},
                                             {"times_last", one.times_last},
                                             {"share_percent", one.share_percent},
                                             {"mean_late_us", one.mean_late_us}};
                                   })},
          {"bubble", bubble_json(report.bubble)},
          {"without_overlap", serial_json(report.without_overlap)},
          {"balance", list_json(report.balance,
                                [](const StepBalance& one) -> nlohmann::json {
                                  return {{"step", one.step},
                                          {"expert_cv", one.expert_cv},
                                          {"device_cv", one.device_cv},
                                          {"max_vio", one.max_vio},
                                          {"drop_rate", one.drop_rate}};
                                })},
          {"expert_load", list_json(report.expert_load,
                                    [](const LayerLoad& one) -> nlohmann::json {
                                      return {{"layer", one.layer}, {"counts", one.counts}};
                                    })},
          {"load_over_time",
           list_json(report.load_over_time,
                     [](const LoadOverTime& one) -> nlohmann::json {
                       return {{"layer", one.layer}, {"first_steps", one.first_steps}, {"counts", one.counts}};
                     })},
          {"moves", list_json(report.moves,
                              [](const LoggedMove& one) -> nlohmann::json {
                                return {{"step", one.step},
                                        {"moved", one.moved},
                                        {"refused", one.refused},
                                        {"bytes", one.bytes},
                                        {"stall_ms", one.stall_ms},
                                        {"load_before", or_null(one.load_before)},
                                        {"load_after", or_null(one.load_after)},
                                        {"gain_ms", or_null(one.gain_ms)},
                                        {"got_ms", or_null(one.got_ms)}};
                              })},
          {"notes", report_notes(report)}};
}

}  // namespace cadre
