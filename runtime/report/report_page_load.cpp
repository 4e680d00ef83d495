// SPDX-License-Identifier: Apache-2.0
// The load of experts in a report page: a map of layers and experts, and for some layers a map of experts and steps.
// Loads are relative to the mean of the layer. Colours: none; 1, the mean, in the middle; the largest load of the map.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/report/report_page_parts.hpp"

namespace cadre::page {
namespace {

constexpr int kMiddle = 4;              // colours 1 to 3 are below the mean, 5 to 8 above
constexpr int kColours = 9;             // 0: no slot at all
constexpr double kLeastScale = 1.25;    // a map of even loads stays pale
constexpr size_t kMostExpertRows = 64;  // of a map over time; of more experts, groups are rows

// `largest`: the load of the last colour.
int colour_of(double load, double largest) {
  if (load <= 0) return 0;
  if (load < 1) return std::clamp(1 + static_cast<int>(load * kMiddle), 1, kMiddle);
  return kMiddle + static_cast<int>(std::lround((load - 1) / (largest - 1) * (kColours - 1 - kMiddle)));
}

// How often the slots of each expert are of the mean; of no expert where no token came.
std::vector<double> loads_of(const std::vector<double>& counts) {
  double total = 0;
  for (const double count : counts) total += count;
  std::vector<double> loads;
  for (const double count : counts) {
    if (total > 0) loads.push_back(count * static_cast<double>(counts.size()) / total);
  }
  return loads;
}

std::vector<double> counts_in(const Json& list) {
  std::vector<double> counts;
  for (const Json& count : list) counts.push_back(count.is_number() ? count.get<double>() : 0);
  return counts;
}

struct LoadRow {
  std::string layer;
  std::vector<double> loads;
  std::vector<double> counts;
};

std::vector<LoadRow> load_rows(const Json& report) {
  std::vector<LoadRow> rows;
  for (const Json& layer : array_at(report, "expert_load")) {
    const std::vector<double> counts = counts_in(array_at(layer, "counts"));
    rows.push_back({text_at(layer, "layer"), loads_of(counts), counts});
  }
  return rows;
}

double scale_to(double largest) { return std::max(largest, kLeastScale); }

// Where the cells of a map of so many rows and experts lie: in percent of its width, in pixels of its height.
struct LoadGrid {
  double tall;
  double wide;
  double height;
};

std::string load_cells(const LoadRow& row, const LoadGrid& grid, double top, double largest) {
  constexpr double kTallEnough = 12, kWideEnough = 5;  // for a number inside
  std::string cells;
  for (size_t expert = 0; expert < row.loads.size(); ++expert) {
    const double load = row.loads[expert];
    const double left = grid.wide * static_cast<double>(expert);
    cells += fmt::format(
        "<g class=\"load{0}\"><rect class=\"load\" data-layer=\"{1}\" data-expert=\"{2}\" "
        "data-load=\"{3:.4f}\" x=\"{4:.4f}%\" width=\"{5:.4f}%\" y=\"{6:g}\" height=\"{7:g}\">"
        "<title>layer {1}, expert {2}: {3:.2f} of the mean, {8:.0f} slots</title></rect>",
        colour_of(load, largest), escaped(row.layer), expert, load, left, grid.wide, top, grid.tall - 1,
        row.counts[expert]);
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

std::string load_scale(double largest) {
  std::string scale = "<ul class=\"legend scale\" aria-label=\"Scale\">" + legend_entry("load0", "none");
  for (int i = 1; i < kMiddle; ++i) {
    scale += legend_entry(fmt::format("load{}", i), fmt::format("{:g} to {:g}", (i - 1) / 4.0, i / 4.0));
  }
  scale += legend_entry(fmt::format("load{}", kMiddle), "about 1, the mean");
  for (int i = kMiddle + 1; i < kColours; ++i) {
    const double load = 1 + (largest - 1) * (i - kMiddle) / (kColours - 1 - kMiddle);
    scale += legend_entry(fmt::format("load{}", i), fmt::format("{:.3g}", load));
  }
  return scale + "</ul>\n";
}

// A layer over time: a row for each expert, or for each group of so many that the busiest of them stands for.
struct LoadHistory {
  std::string layer;
  std::vector<std::string> first_steps;
  std::vector<std::vector<double>> loads;  // by column and expert
  size_t num_experts = 0;
};

std::vector<LoadHistory> load_histories(const Json& report) {
  std::vector<LoadHistory> layers;
  for (const Json& layer : array_at(report, "load_over_time")) {
    LoadHistory history = {text_at(layer, "layer"), {}, {}, 0};
    for (const Json& step : array_at(layer, "first_steps")) history.first_steps.push_back(step.dump());
    for (const Json& column : array_at(layer, "counts")) {
      history.loads.push_back(loads_of(counts_in(column)));
      history.num_experts = std::max(history.num_experts, history.loads.back().size());
    }
    history.first_steps.resize(history.loads.size());
    if (history.num_experts > 0) layers.push_back(std::move(history));
  }
  return layers;
}

std::string history_map(const LoadHistory& history, double largest) {
  constexpr double kLeft = 64, kRight = 416, kAxisHeight = 20;
  const size_t in_row = (history.num_experts + kMostExpertRows - 1) / kMostExpertRows;
  const size_t num_rows = (history.num_experts + in_row - 1) / in_row;
  const double tall = num_rows > 24 ? 5 : 12;
  const double wide = (kRight - kLeft) / static_cast<double>(history.loads.size());
  const double bottom = tall * static_cast<double>(num_rows);
  std::string text = fmt::format(
      "<figure><figcaption><b>Layer {0}</b>{1}</figcaption><svg class=\"lines history\" viewBox=\"0 0 420 {2:g}\" "
      "role=\"img\" data-layer=\"{0}\" aria-label=\"Load of {3} experts of layer {0} over time\">\n",
      escaped(history.layer), in_row > 1 ? fmt::format(" the busiest of {} experts a row", in_row) : "",
      bottom + kAxisHeight, history.num_experts);
  for (size_t column = 0; column < history.loads.size(); ++column) {
    const std::vector<double>& loads = history.loads[column];
    for (size_t row = 0; row * in_row < loads.size(); ++row) {
      const auto first = loads.begin() + static_cast<std::ptrdiff_t>(row * in_row);
      const auto busiest = std::max_element(
          first, loads.size() - row * in_row > in_row ? first + static_cast<std::ptrdiff_t>(in_row) : loads.end());
      text += fmt::format(
          "<g class=\"load{}\"><rect x=\"{:.2f}\" width=\"{:.2f}\" y=\"{:g}\" height=\"{:g}\"><title>from step {} on, "
          "expert {}: {:.2f} of the mean</title></rect></g>\n",
          colour_of(*busiest, largest), kLeft + wide * static_cast<double>(column), wide,
          tall * static_cast<double>(row), tall - (tall > 6 ? 1 : 0), escaped(history.first_steps[column]),
          busiest - loads.begin(), *busiest);
    }
  }
  text += fmt::format(
      "<text class=\"end\" x=\"{0:g}\" y=\"11\">expert 0</text><text class=\"end\" x=\"{0:g}\" y=\"{1:g}\">{2}</text>"
      "<text x=\"{3:g}\" y=\"{4:g}\">step {5}</text><text class=\"end\" x=\"{6:g}\" y=\"{4:g}\">step {7}</text>\n",
      kLeft - 6, std::max(bottom - 1, 23.0), history.num_experts - 1, kLeft, bottom + 14,
      escaped(history.first_steps.front()), kRight, escaped(history.first_steps.back()));
  return text + "</svg></figure>\n";
}

}  // namespace

std::string load_map(const Json& report) {
  constexpr double kLabels = 64, kAxis = 20;
  const std::vector<LoadRow> rows = load_rows(report);
  size_t most_experts = 0;
  double largest = 0;
  for (const LoadRow& row : rows) {
    most_experts = std::max(most_experts, row.counts.size());
    for (const double load : row.loads) largest = std::max(largest, load);
  }
  if (most_experts == 0) return note("The run has no expert counts of these steps.");
  largest = scale_to(largest);

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
    cells += load_cells(rows[i], grid, top, largest);
  }
  labels +=
      fmt::format("<text class=\"small end\" x=\"{:g}\" y=\"{:g}\">expert</text>\n", kLabels - 8, grid.height - 5);
  cells += expert_marks(most_experts, grid);
  return "<p>Slots of each expert over the traced steps, relative to the mean of its layer.</p>\n" +
         load_scale(largest) + "<div class=\"beside\">\n" + labels + "</svg>\n" + cells + "</svg>\n</div>\n";
}

std::string load_over_time(const Json& report) {
  const std::vector<LoadHistory> layers = load_histories(report);
  if (layers.empty()) return note("The run has no expert counts.");
  double largest = 0;
  for (const LoadHistory& layer : layers) {
    for (const std::vector<double>& loads : layer.loads) {
      for (const double load : loads) largest = std::max(largest, load);
    }
  }
  largest = scale_to(largest);
  std::string maps;
  for (const LoadHistory& layer : layers) maps += history_map(layer, largest);
  return "<p>Slots of each expert over the steps of the whole run, relative to the mean of its layer at the time; of "
         "more than 4 layers the least even ones.</p>\n" +
         load_scale(largest) + "<div class=\"panels\">\n" + maps + "</div>\n";
}

}  // namespace cadre::page
