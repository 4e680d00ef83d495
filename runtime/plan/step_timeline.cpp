// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/step_timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string_view>
#include <utility>

#include "runtime/plan/run_passes.hpp"

namespace cadre {
namespace {

// In pixels.
constexpr double kTimelineWidth = 800;
constexpr double kTimelineLeft = 64;
constexpr double kTimelineWide = 716;  // of the bars
constexpr double kTimelineTop = 76;
constexpr double kTimelineRow = 30;
constexpr double kTimelineBar = 16;
constexpr double kHiddenBar = 6;
constexpr int kMostTicks = 8;

struct TimelineColour {
  const char* style;  // name of the class
  const char* fill;
  const char* label;
};
// Told apart by lightness too.
constexpr TimelineColour kCompute = {"c", "#2f62b5", "compute"};
constexpr TimelineColour kExposed = {"x", "#d1453b", "exposed communication"};
constexpr TimelineColour kHidden = {"h", "#e8a33d", "hidden communication"};
constexpr TimelineColour kBubble = {"b", "#e4e7ec", "bubble"};

std::string xml_text(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&': safe += "&amp;"; break;
      case '<': safe += "&lt;"; break;
      case '>': safe += "&gt;"; break;
      default: safe += c;
    }
  }
  return safe;
}

// The smallest of 1, 2, 5 times a power of ten that makes at most kMostTicks steps.
double tick_of(double whole) {
  const double least = whole / kMostTicks;
  const double power = std::pow(10.0, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= least) return factor * power;
  }
  return 10.0 * power;
}

class TimelineChart {
 public:
  TimelineChart(const StepTimeline& timeline, std::string title)
      : timeline_(timeline),
        title_(std::move(title)),
        step_ms_(std::max(timeline.step_s * 1e3, 1e-9)),
        bottom_(kTimelineTop + kTimelineRow * static_cast<double>(timeline.rows.size())) {}

  std::string draw() {
    head();
    legend();
    axis();
    for (size_t row = 0; row < timeline_.rows.size(); ++row) draw_row(row);
    return text_ + "</svg>\n";
  }

 private:
  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  double x(double ms) const { return kTimelineLeft + ms / step_ms_ * kTimelineWide; }

  void head() {
    put("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\" "
        "font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"12\">\n<style>.t {{fill: #4a5361}}",
        kTimelineWidth, bottom_ + 44);
    for (const TimelineColour& colour : {kCompute, kExposed, kHidden, kBubble}) {
      put(" .{} {{fill: {}}}", colour.style, colour.fill);
    }
    put("</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    put("<text x=\"16\" y=\"26\" font-size=\"15\" font-weight=\"600\" fill=\"#1d2430\">{}</text>\n", xml_text(title_));
  }

  void legend() {
    double at = 16;
    for (const TimelineColour& colour : {kCompute, kExposed, kHidden, kBubble}) {
      put("<rect class=\"{}\" x=\"{:g}\" y=\"42\" width=\"14\" height=\"14\"/>", colour.style, at);
      put("<text class=\"t\" x=\"{:g}\" y=\"53\">{}</text>\n", at + 20, colour.label);
      at += 44 + 7.0 * static_cast<double>(std::string_view(colour.label).size());
    }
  }

  void axis() {
    const double tick = tick_of(step_ms_);
    for (int i = 0; i * tick <= step_ms_ * (1 + 1e-9); ++i) {
      put("<path d=\"M{0:.2f} {1:g}V{2:g}\" stroke=\"#c9ced6\"/>", x(i * tick), kTimelineTop - 6, bottom_);
      put("<text class=\"t\" x=\"{:.2f}\" y=\"{:g}\" text-anchor=\"middle\">{:g}</text>\n", x(i * tick), bottom_ + 18,
          i * tick);
    }
    put("<text class=\"t\" x=\"{:g}\" y=\"{:g}\" text-anchor=\"end\">ms</text>\n", kTimelineWidth - 4, bottom_ + 34);
  }

  void draw_row(size_t row) {
    const RowTimeline& one = timeline_.rows[row];
    const double top = kTimelineTop + kTimelineRow * static_cast<double>(row);
    put("<text class=\"t\" x=\"{:g}\" y=\"{:g}\" text-anchor=\"end\">row {}</text>\n", kTimelineLeft - 8, top + 15,
        row);
    const std::vector<double> compute = shares_of(one.compute);
    std::vector<double> busy = shares_of(one.exposed);
    for (size_t i = 0; i < busy.size(); ++i) busy[i] += compute[i];
    put("<rect class=\"{}\" x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\"/>", kBubble.style, kTimelineLeft, top,
        kTimelineWide, kTimelineBar);
    area(kExposed, busy, top, kTimelineBar);
    area(kCompute, compute, top, kTimelineBar);
    area(kHidden, shares_of(one.hidden), top + kTimelineBar, kHiddenBar);
  }

  // Of the time of each pixel.
  std::vector<double> shares_of(const std::vector<ClockSpan>& spans) const {
    std::vector<double> shares(static_cast<size_t>(kTimelineWide), 0.0);
    for (const ClockSpan& span : spans) {
      const double begin = x(span.begin * 1e3) - kTimelineLeft;
      const double end = std::min(x(span.end * 1e3) - kTimelineLeft, kTimelineWide);
      for (auto pixel = static_cast<size_t>(begin); pixel < shares.size() && static_cast<double>(pixel) < end;
           ++pixel) {
        const auto left = static_cast<double>(pixel);
        shares[pixel] += std::min(end, left + 1.0) - std::max(begin, left);
      }
    }
    return shares;
  }

  // As high in each pixel as its share of `tall`, to half a pixel.
  void area(const TimelineColour& colour, const std::vector<double>& shares, double top, double tall) {
    std::string path;
    double height = 0.0;
    const auto rise = [&](size_t pixel, double to) {
      if (to == height) return;
      fmt::format_to(std::back_inserter(path), "H{:g}V{:g}", kTimelineLeft + static_cast<double>(pixel),
                     top + tall - to);
      height = to;
    };
    for (size_t pixel = 0; pixel < shares.size(); ++pixel) {
      rise(pixel, std::round(2.0 * tall * std::min(1.0, shares[pixel])) / 2.0);
    }
    rise(shares.size(), 0.0);
    if (path.empty()) return;
    put("<path class=\"{}\" d=\"M{:g} {:g}{}z\"/>\n", colour.style, kTimelineLeft, top + tall, path);
  }

  const StepTimeline& timeline_;
  std::string title_;
  double step_ms_;
  double bottom_;
  std::string text_;
};

}  // namespace

StepTimeline step_timeline(const StepShape& shape, bool overlap) {
  const PassesRun run = run_passes(shape, overlap ? ClockOverlap::on : ClockOverlap::off, /*hands_values=*/true);
  const double passes_s = std::ranges::max(run.ends);
  StepTimeline timeline;
  double longest = 0.0;
  for (int row = 0; row < shape.program.num_ranks; ++row) {
    RowSpans spans = spans_of_row(shape, run, row);
    RowTimeline& one = timeline.rows.emplace_back();
    one.hidden = common_of(spans.flights, spans.working);
    const double tail = tail_of_row(shape, row);
    if (tail > 0.0) spans.working.push_back({passes_s, passes_s + tail});
    one.compute = std::move(spans.working);
    one.exposed = std::move(spans.exposed);
    longest = std::max(longest, tail);
  }
  timeline.step_s = passes_s + longest + shape.tail_latency_s;
  if (shape.tail_latency_s > 0.0) {
    for (RowTimeline& row : timeline.rows) row.exposed.push_back({passes_s + longest, timeline.step_s});
  }
  return timeline;
}

std::string timeline_svg(const StepTimeline& timeline, const std::string& title) {
  return TimelineChart(timeline, title).draw();
}

}  // namespace cadre
