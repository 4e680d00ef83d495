// SPDX-License-Identifier: Apache-2.0
// The smaller charts of a report page: bars of times, lines of balance over steps.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "runtime/report/report_page_parts.hpp"

namespace cadre::page {
namespace {

struct Part {
  const char* style;
  double value;
};

struct BarRow {
  std::string name;  // of the row, as data-bar
  std::string label;
  std::vector<Part> parts;  // from left to right
};

// Rows of bars from a common zero, with a line of text above each.
std::string bar_chart(const std::string& label, const std::vector<BarRow>& rows) {
  constexpr double kRow = 50;
  double longest = 1e-12;
  for (const BarRow& row : rows) {
    double length = 0;
    for (const Part& part : row.parts) length += part.value;
    longest = std::max(longest, length);
  }
  std::string text =
      fmt::format("<svg class=\"chart\" width=\"100%\" height=\"{:g}\" role=\"img\" aria-label=\"{}\">\n",
                  kRow * static_cast<double>(rows.size()), escaped(label));
  for (size_t i = 0; i < rows.size(); ++i) {
    const double top = kRow * static_cast<double>(i);
    text += fmt::format("<text x=\"0\" y=\"{:g}\">{}</text>", top + 14, escaped(rows[i].label));
    double at = 0;
    for (const Part& part : rows[i].parts) {
      const double share = 100 * std::max(part.value, 0.0) / longest;
      text += fmt::format(
          "<rect class=\"{}\" data-bar=\"{}\" data-value=\"{:.6g}\" x=\"{:.4f}%\" width=\"{:.4f}%\" "
          "y=\"{:g}\" height=\"18\"/>",
          part.style, escaped(rows[i].name), part.value, at, share, top + 21);
      at += share;
    }
    text += "\n";
  }
  return text + "</svg>\n";
}

BarRow passes_row(const char* name, std::optional<double> passes, std::optional<double> exposed) {
  return {name,
          fmt::format("{}: {}, of which {} exposed", name, figure(passes, Unit::ms), figure(exposed, Unit::ms)),
          {{"busy", passes.value_or(0) - exposed.value_or(0)}, {"wait", exposed.value_or(0)}}};
}

// A line chart of one figure of the steps, in a drawing that keeps its proportions.
std::string line_chart(const Json& steps, const char* key, const char* title, const char* about) {
  constexpr double kLeft = 44, kRight = 408, kTop = 26, kBottom = 132, kTall = 160;
  std::vector<std::pair<double, double>> points;
  for (const Json& step : steps) {
    const auto x = number_at(step, "step");
    const auto y = number_at(step, key);
    if (x && y) points.emplace_back(*x, *y);
  }
  if (points.empty()) return "";
  std::ranges::sort(points);
  const double first = points.front().first, last = points.back().first;
  const double largest = std::ranges::max(points, {}, [](const auto& point) { return point.second; }).second;
  const std::vector<double> marks = ticks(largest > 0 ? largest * 1.02 : 1, 5);
  const double most = std::max(largest * 1.02, marks.back());
  const auto x = [&](double step) {
    return last > first ? kLeft + (kRight - kLeft) * (step - first) / (last - first) : (kLeft + kRight) / 2;
  };
  const auto y = [&](double value) { return kBottom - (kBottom - kTop) * value / (most > 0 ? most : 1); };

  std::string text = fmt::format(
      "<figure><figcaption><b>{}</b> {}</figcaption><svg class=\"lines\" viewBox=\"0 0 420 {:g}\" role=\"img\" "
      "data-series=\"{}\" aria-label=\"{} over steps {:g} to {:g}, at most {:.3g}\">\n",
      title, about, kTall, key, title, first, last, largest);
  for (const double mark : marks) {
    text += fmt::format(
        "<line x1=\"{:g}\" x2=\"{:g}\" y1=\"{:.2f}\" y2=\"{:.2f}\"/><text class=\"end\" x=\"{:g}\" "
        "y=\"{:.2f}\">{:g}</text>",
        kLeft, kRight, y(mark), y(mark), kLeft - 6, y(mark) + 4, mark);
  }
  text += "\n<polyline points=\"";
  for (const auto& [step, value] : points) text += fmt::format("{:.2f},{:.2f} ", x(step), y(value));
  text += "\"/>\n";
  if (points.size() <= 60) {
    for (const auto& [step, value] : points) {
      text += fmt::format("<circle cx=\"{:.2f}\" cy=\"{:.2f}\" r=\"2.5\"><title>step {:g}: {:.4g}</title></circle>",
                          x(step), y(value), step, value);
    }
  }
  text += fmt::format("<text x=\"{:g}\" y=\"{:g}\" class=\"{}\">step {:g}</text>", x(first), kBottom + 18,
                      last > first ? "start" : "middle", first);
  if (last > first)
    text += fmt::format("<text x=\"{:g}\" y=\"{:g}\" class=\"end\">step {:g}</text>", kRight, kBottom + 18, last);
  return text + "</svg></figure>\n";
}

}  // namespace

std::string overlap_bars(const Json& report) {
  const Json& serial = object_at(report, "without_overlap");
  if (!serial.is_object())
    return note("The steps were not also run without overlap, so there is nothing to compare with.");
  const Json& headline = object_at(report, "headline");
  return fmt::format(
             "<p>Speed-up of the passes <b>{}</b>. Hidden part of the exchanges: {} with overlap, {} without.</p>\n",
             figure(number_at(serial, "speed_up"), Unit::factor),
             figure(number_at(headline, "exchange_hidden_percent"), Unit::percent),
             figure(number_at(serial, "exchange_hidden_percent"), Unit::percent)) +
         bar_chart(
             "Length of the passes of a step with and without overlap",
             {passes_row("with overlap", number_at(serial, "overlapped_passes_ms"), number_at(headline, "exposed_ms")),
              passes_row("without overlap", number_at(serial, "passes_ms"), number_at(serial, "exposed_ms"))}) +
         "<ul class=\"legend\" aria-label=\"Colours\">" + legend_entry("busy", "computation and idle time") +
         legend_entry("wait", "exposed communication") + "</ul>\n";
}

std::string bubble_bars(const Json& report) {
  const Json& bubble = object_at(report, "bubble");
  if (!bubble.is_object()) return note("The run had one pipeline stage: there is no bubble.");
  std::vector<BarRow> rows;
  for (const auto& [key, name] : {std::pair("measured_idle_ms", "measured"),
                                  {"simulated_idle_ms", "simulated"},
                                  {"formula_idle_ms", "by formula"}}) {
    const auto value = number_at(bubble, key);
    std::string label = fmt::format("{}: {}", name, figure(value, Unit::ms));
    if (std::string_view(key) == "formula_idle_ms" && !text_at(bubble, "formula").empty()) {
      label += " = " + text_at(bubble, "formula");
    }
    rows.push_back({name, label, {{"idle", value.value_or(0)}}});
  }
  return "<p>Time in which a rank works on no pass, from the first pass on any rank to the end of the last: measured, "
         "by simulation of the schedule with the measured cost of its ops, and by the formula of the schedule. Idle "
         "time elsewhere is of the whole step, and without the time in which something is in flight.</p>\n" +
         bar_chart("Bubble of a rank in the pipeline", rows);
}

std::string balance_lines(const Json& report) {
  const Json& steps = array_at(report, "balance");
  std::string charts = line_chart(steps, "expert_cv", "Expert CV", "standard deviation / mean of the load of experts") +
                       line_chart(steps, "device_cv", "Device CV", "the same of the load of ranks") +
                       line_chart(steps, "max_vio", "MaxVio", "largest load of an expert / mean - 1");
  if (std::ranges::any_of(steps, [](const Json& step) { return number_at(step, "drop_rate").value_or(0) > 0; })) {
    charts += line_chart(steps, "drop_rate", "Drop rate", "dropped / all slots");
  }
  if (charts.empty()) return note("The run has no metrics of these steps.");
  return "<div class=\"panels\">\n" + charts + "</div>\n";
}

}  // namespace cadre::page
