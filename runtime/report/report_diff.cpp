// SPDX-License-Identifier: Apache-2.0
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
#include "runtime/report/report.hpp"
#include "runtime/report/text_table.hpp"

namespace cadre {
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
    {"serial_step_ms", "serial ms"},
    {"speed_up", "speed-up"},
    {"tokens_per_second", "tokens/s"},
    {"compute_ms", "compute"},
    {"communication_ms", "communication"},
    {"hidden_percent", "hidden %"},
    {"exposed_ms", "exposed"},
    {"exposed_percent_of_step", "exposed % of step"},
    {"skew_ms", "skew"},
    {"transfer_ms", "transfer"},
    {"control_ms", "control"},
    {"idle_ms", "idle"},
    {"exchange_ms", "exchange"},
    {"exchange_hidden_percent", "exchange hidden %"},
};

}  // namespace

void check_report(const Json& report, const std::string& from) {
  const bool known = report.is_object() && report.value("schema", Json()) == "cadre.report" &&
                     report.value("version", Json()) == kReportVersion;
  CADRE_CHECK(known, fmt::format("{} is no report of version {}", from, kReportVersion),
              "write one with cadre report RUN_DIR --json FILE");
  try {
    static_cast<void>(means_of(report));
    for (const auto& [key, name] : kFigures) static_cast<void>(report.at("headline").at(key));
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
  TextTable headlines({"", "before", "after", "change"});
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
    static constexpr std::string_view kIncidental[] = {"clock_error_us", "config_hash", "date",
                                                       "first_step",     "last_step",   "lost_events"};
    const Json other = diff.at("after").at("run").value(key, Json());
    if (other == value || std::ranges::find(kIncidental, key) != std::end(kIncidental)) continue;
    settings += fmt::format("  {} {} -> {}\n", key, value.dump(), other.dump());
  }
  if (!settings.empty()) text += "\nThe runs differ in\n" + settings;
  if (diff.at("changes").empty()) return text + "\nNo phase changed beyond the noise between ranks.\n";
  TextTable phases({"changed beyond noise", "class", "before ms", "after", "change", "noise"});
  for (const Json& one : diff.at("changes")) {
    phases.add({one.at("phase").get<std::string>(), one.at("class").get<std::string>(),
                number_text(one.at("before_ms"), 3), number_text(one.at("after_ms"), 3),
                percent_text(one.at("change_percent")), number_text(one.at("noise_ms"), 3)});
  }
  return text + '\n' + phases.text();
}

}  // namespace cadre
