// SPDX-License-Identifier: Apache-2.0
// The smaller charts of a report page: bars of times, lines of balance over steps, the map of expert load.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "runtime/observe/report_page_parts.hpp"

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

constexpr int kColours = 9;  // a quarter of the mean each, from none to twice the mean

int colour_of(double load) { return std::clamp(static_cast<int>(std::lround(load * 4)), 0, kColours - 1); }

}  // namespace

std::string overlap_bars(const Json& report) {
  const Json& serial = object_at(report, "without_overlap");
  if (!serial.is_object())
    return note("The steps were not also run without overlap, so there is nothing to compare with.");
  const Json& headline = object_at(report, "headline");
  return fmt::format(
             "<p>Speed-up <b>{}</b>. Hidden part of the exchanges: {} with overlap, {} without.</p>\n",
             [&] {
               const auto speed_up = number_at(serial, "speed_up");
               return speed_up ? fmt::format("{:.3f} ×", *speed_up) : std::string("–");
             }(),
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
  return "<p>Idle time of a rank in a step, measured, by simulation of the schedule with the measured cost of its ops, "
         "and "
         "by the formula of the schedule.</p>\n" +
         bar_chart("Idle time of a rank in the pipeline", rows);
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

namespace {

// A layer: the slots of each expert, and how often each is of the mean; of no expert where no token came.
struct LoadRow {
  std::string layer;
  std::vector<double> loads;
  std::vector<double> counts;
};

std::vector<LoadRow> load_rows(const Json& report) {
  std::vector<LoadRow> rows;
  for (const Json& layer : array_at(report, "expert_load")) {
    LoadRow row = {text_at(layer, "layer"), {}, {}};
    double total = 0;
    for (const Json& count : array_at(layer, "counts")) {
      row.counts.push_back(count.is_number() ? count.get<double>() : 0);
      total += row.counts.back();
    }
    for (const double count : row.counts) {
      if (total > 0) row.loads.push_back(count * static_cast<double>(row.counts.size()) / total);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

// Where the cells of a map of so many rows and experts lie: in percent of its width, in pixels of its height.
struct LoadGrid {
  double tall;
  double wide;
  double height;
};

std::string load_cells(const LoadRow& row, const LoadGrid& grid, double top) {
  constexpr double kTallEnough = 12, kWideEnough = 5;  // for a number inside
  std::string cells;
  for (size_t expert = 0; expert < row.loads.size(); ++expert) {
    const double load = row.loads[expert];
    const double left = grid.wide * static_cast<double>(expert);
    cells += fmt::format(
        "<g class=\"load{0}\"><rect class=\"load\" data-layer=\"{1}\" data-expert=\"{2}\" "
        "data-load=\"{3:.4f}\" x=\"{4:.4f}%\" width=\"{5:.4f}%\" y=\"{6:g}\" height=\"{7:g}\">"
        "<title>layer {1}, expert {2}: {3:.2f} of the mean, {8:.0f} slots</title></rect>",
        colour_of(load), escaped(row.layer), expert, load, left, grid.wide, top, grid.tall - 1, row.counts[expert]);
    if (grid.wide >= kWideEnough && grid.tall > kTallEnough) {
      cells += fmt::format("<text class=\"small middle\" x=\"{:.4f}%\" y=\"{:g}\">{:.2f}</text>", left + grid.wide / 2,
                           top + grid.tall / 2 + 3, load);
    }
    cells += "</g>\n";
  }
  return cells;
}

std::string expert_marks(size_t num_experts, const LoadGrid& grid) {
  std::string marks;
  for (const double mark : ticks(static_cast<double>(num_experts - 1), 16)) {
    if (mark != std::floor(mark)) continue;
    const double at = grid.wide * (mark + 0.5);
    marks += fmt::format("<text class=\"small {}\" x=\"{:.4f}%\" y=\"{:g}\">{:g}</text>", at < 2 ? "start" : "middle",
                         at, grid.height - 5, mark);
  }
  return marks;
}

std::string load_scale() {
  std::string scale = "<ul class=\"legend scale\" aria-label=\"Scale\">";
  for (int i = 0; i < kColours; ++i) {
    scale += legend_entry(fmt::format("load{}", i), i == 4              ? "1, the mean"
                                                    : i == kColours - 1 ? "2 and more"
                                                                        : fmt::format("{:g}", i / 4.0));
  }
  return scale + "</ul>\n";
}

}  // namespace

std::string load_map(const Json& report) {
  constexpr double kLabels = 64, kAxis = 20;
  const std::vector<LoadRow> rows = load_rows(report);
  size_t most_experts = 0;
  for (const LoadRow& row : rows) most_experts = std::max(most_experts, row.counts.size());
  if (most_experts == 0) return note("The run has no expert counts of these steps.");

  const double tall = rows.size() > 40 ? 11 : 18;
  const LoadGrid grid = {tall, 100 / static_cast<double>(most_experts),
                         tall * static_cast<double>(rows.size()) + kAxis};
  std::string labels =
      fmt::format("<svg class=\"labels\" width=\"{:g}\" height=\"{:g}\" role=\"img\" aria-label=\"Layers\">\n", kLabels,
                  grid.height);
  std::string cells = fmt::format(
      "<svg class=\"map\" width=\"100%\" height=\"{:g}\" role=\"img\" aria-label=\"Load of {} experts in {} layers, "
      "relative to the mean of the layer\">\n",
      grid.height, most_experts, rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const double top = tall * static_cast<double>(i);
    labels += fmt::format("<text class=\"small end\" x=\"{:g}\" y=\"{:g}\">layer {}</text>\n", kLabels - 8,
                          top + tall / 2 + 3.5, escaped(rows[i].layer));
    cells += load_cells(rows[i], grid, top);
  }
  labels +=
      fmt::format("<text class=\"small end\" x=\"{:g}\" y=\"{:g}\">expert</text>\n", kLabels - 8, grid.height - 5);
  cells += expert_marks(most_experts, grid);
  return "<p>Slots of each expert over the traced steps, relative to the mean of its layer.</p>\n" + load_scale() +
         "<div class=\"beside\">\n" + labels + "</svg>\n" + cells + "</svg>\n</div>\n";
}

}  // namespace cadre::page
