// SPDX-License-Identifier: Apache-2.0
// The timeline of a report page: one typical step of all ranks on one clock, three rows a rank.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <set>

#include "runtime/report/report_page_parts.hpp"

namespace cadre::page {
namespace {

constexpr size_t kMaxBars = 20000;
constexpr size_t kMaxLanes = 6;  // rows for requests in flight
constexpr double kWidth = 1000;  // of the drawing, in its own units; the page stretches it
constexpr double kLeast = 0.02;  // width of the shortest activity, in the same units
constexpr double kLabels = 156;  // the rest in pixels
constexpr double kAxis = 22;
constexpr double kComputeHeight = 18;
constexpr double kWait = 8;
constexpr double kLane = 6;
constexpr double kBetween = 2;
constexpr double kBetweenRanks = 12;

struct Family {
  const char* style;
  const char* label;
};

// In the order of the legend. "step" is also what a phase unknown here is part of.
constexpr Family kFamilies[] = {
    {"attention", "embedding, norm, attention, head"},
    {"experts", "experts, shared experts, ffn"},
    {"router", "router"},
    {"dispatch", "dispatch"},
    {"combine", "combine"},
    {"weights", "weight gradients"},
    {"pipeline", "pipeline send, receive"},
    {"reduction", "reductions over ranks"},
    {"step", "data, optimizer, other"},
};

std::string_view family_of(std::string_view phase) {
  static const std::map<std::string_view, std::string_view> kFamilyOf = {
      {"embedding", "attention"},
      {"norm", "attention"},
      {"attention", "attention"},
      {"head", "attention"},
      {"experts", "experts"},
      {"shared experts", "experts"},
      {"ffn", "experts"},
      {"router", "router"},
      {"dispatch", "dispatch"},
      {"combine", "combine"},
      {"expert counts", "reduction"},
      {"metrics", "reduction"},
      {"gradient norm", "reduction"},
  };
  constexpr std::string_view kGradient = " gradient";
  if (phase.ends_with(" weights")) return "weights";
  if (phase.ends_with("gradient reduction") || phase.ends_with("parameter gather")) return "reduction";
  if (phase.starts_with("send ") || phase.starts_with("receive ")) return "pipeline";
  if (phase.ends_with(kGradient)) phase.remove_suffix(kGradient.size());
  const auto found = kFamilyOf.find(phase);
  return found == kFamilyOf.end() ? "step" : found->second;
}

bool is_backward(std::string_view phase) { return phase.ends_with(" gradient") && family_of(phase) != "pipeline"; }

struct Span {
  int64_t begin = 0;
  int64_t end = 0;
};

struct Shown {
  int64_t step = -1;
  int64_t num_steps = 0;
  Span all;
  std::vector<Span> ranks;
};

// The step of median length among those that every trace has; step -1 where there is none.
Shown typical_step(const std::vector<const RankTrace*>& traces) {
  std::map<int64_t, std::vector<Span>> steps;
  for (size_t i = 0; i < traces.size(); ++i) {
    for (const TracedEvent& event : traces[i]->events) {
      if (event.kind != TraceKind::step || event.phase != "step" || event.end_ns <= event.begin_ns) continue;
      std::vector<Span>& spans = steps[event.step];
      if (spans.size() == i) spans.push_back({event.begin_ns, event.end_ns});
    }
  }
  std::vector<Shown> whole;
  for (const auto& [step, spans] : steps) {
    if (spans.size() != traces.size()) continue;
    whole.push_back({step,
                     0,
                     {std::ranges::min(spans, {}, &Span::begin).begin, std::ranges::max(spans, {}, &Span::end).end},
                     spans});
  }
  if (whole.empty()) return {};
  const auto median = whole.begin() + static_cast<std::ptrdiff_t>((whole.size() - 1) / 2);
  std::ranges::nth_element(whole, median, {}, [](const Shown& shown) { return shown.all.end - shown.all.begin; });
  median->num_steps = static_cast<int64_t>(whole.size());
  return *median;
}

struct Bar {
  const TracedEvent* event;
  Span span;  // what of it lies in the step of its rank
  size_t lane = 0;
};

bool is_drawn(TraceKind kind) {
  return kind == TraceKind::compute || kind == TraceKind::wait || kind == TraceKind::flight;
}

std::vector<Bar> bars_of(const RankTrace& trace, const Span& step) {
  std::vector<Bar> bars;
  for (const TracedEvent& event : trace.events) {
    const Span span = {std::max(event.begin_ns, step.begin), std::min(event.end_ns, step.end)};
    if (is_drawn(event.kind) && span.begin < span.end) bars.push_back({&event, span});
  }
  std::ranges::stable_sort(bars, {}, [](const Bar& bar) { return bar.span.begin; });
  return bars;
}

// Requests in flight at the same time lie in different lanes, as far as these reach; returns how many did not fit.
size_t stack(std::vector<Bar>& bars, size_t& num_lanes) {
  std::vector<int64_t> free_from;
  size_t num_hidden = 0;
  for (Bar& bar : bars) {
    if (bar.event->kind != TraceKind::flight) continue;
    const auto lane = std::ranges::find_if(free_from, [&](int64_t time) { return time <= bar.span.begin; });
    bar.lane = static_cast<size_t>(lane - free_from.begin());
    if (lane != free_from.end()) {
      *lane = bar.span.end;
    } else if (free_from.size() < kMaxLanes) {
      free_from.push_back(bar.span.end);
    } else {
      bar.lane = kMaxLanes - 1;
      free_from.back() = std::max(free_from.back(), bar.span.end);
      ++num_hidden;
    }
  }
  num_lanes = std::max(num_lanes, free_from.size());
  return num_hidden;
}

class TimelineChart {
 public:
  explicit TimelineChart(const std::vector<RankTrace>& traces) {
    for (const RankTrace& trace : traces) traces_.push_back(&trace);
    std::ranges::sort(traces_, {}, &RankTrace::rank);
    shown_ = typical_step(traces_);
    if (shown_.step >= 0) choose();
  }

  std::string draw() {
    if (traces_.empty()) return note("There are no traces beside this report.");
    if (shown_.step < 0) return note("No step is whole in the traces of all ranks.");
    put("<p>Step {} of the run, {}, the median of {} traced. Clocks are aligned to rank 0.</p>\n", shown_.step,
        figure(ms(shown_.all.end - shown_.all.begin), Unit::ms), shown_.num_steps);
    legend();
    left_out();
    put("<p class=\"controls\" hidden=\"hidden\"><button type=\"button\" data-zoom=\"in\">Zoom in</button> "
        "<button type=\"button\" data-zoom=\"out\">Zoom out</button> "
        "<button type=\"button\" data-zoom=\"all\">Whole step</button> "
        "<span>Ctrl and wheel zooms, dragging moves; so do + - 0 and the arrow keys.</span></p>\n");
    put("<div class=\"beside\" tabindex=\"0\" role=\"group\" aria-label=\"Timeline of one step\">\n");
    labels();
    plot();
    return text_ + "</div>\n";
  }

 private:
  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  static double ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }
  double x(int64_t time) const {
    return kWidth * static_cast<double>(time - shown_.all.begin) /
           static_cast<double>(shown_.all.end - shown_.all.begin);
  }
  double rank_height() const {
    return kComputeHeight + kBetween + kWait + kBetween + kLane * static_cast<double>(num_lanes_) + kBetweenRanks;
  }
  double top(size_t i) const { return kAxis + kBetweenRanks / 2 + rank_height() * static_cast<double>(i); }
  double bottom() const { return top(bars_.size()) - kBetweenRanks / 2; }
  double height() const { return bottom() + kAxis; }

  // As many ranks as bars allow, from the first on.
  void choose() {
    size_t total = 0;
    for (size_t i = 0; i < traces_.size(); ++i) {
      std::vector<Bar> bars = bars_of(*traces_[i], shown_.ranks[i]);
      if (bars_.empty() && bars.size() > kMaxBars) {
        num_short_ = bars.size() - kMaxBars;
        const auto length = [](const Bar& bar) { return bar.span.end - bar.span.begin; };
        std::ranges::nth_element(bars, bars.begin() + kMaxBars, std::ranges::greater(), length);
        bars.resize(kMaxBars);
        std::ranges::sort(bars, {}, [](const Bar& bar) { return bar.span.begin; });
      }
      if (total + bars.size() > kMaxBars) break;
      total += bars.size();
      num_hidden_ += stack(bars, num_lanes_);
      bars_.push_back(std::move(bars));
    }
  }

  void legend() {
    std::set<std::string_view> families;
    std::set<TraceKind> kinds;
    bool has_backward = false;
    for (const std::vector<Bar>& bars : bars_) {
      for (const Bar& bar : bars) {
        kinds.insert(bar.event->kind);
        if (bar.event->kind == TraceKind::wait) continue;
        families.insert(family_of(bar.event->phase));
        has_backward = has_backward || is_backward(bar.event->phase);
      }
    }
    put("<ul class=\"legend\" aria-label=\"Colours\">");
    for (const Family& family : kFamilies) {
      if (families.contains(family.style)) text_ += legend_entry(family.style, family.label);
    }
    if (has_backward) text_ += legend_entry("attention back", "darker: backward");
    if (kinds.contains(TraceKind::wait)) text_ += legend_entry("wait", "exposed wait");
    put("</ul>\n");
  }

  void left_out() {
    std::string text;
    if (bars_.size() < traces_.size()) {
      text += fmt::format(" Ranks {} to {} are left out: at most {} bars are drawn.", traces_[bars_.size()]->rank,
                          traces_.back()->rank, kMaxBars);
    }
    if (num_short_ > 0) {
      text += fmt::format(" The {} shortest of {} activities and requests are left out.", num_short_,
                          num_short_ + kMaxBars);
    }
    if (num_hidden_ > 0) {
      text += fmt::format(" {} requests lie over others in the last of {} rows.", num_hidden_, kMaxLanes);
    }
    if (!text.empty()) put("<p class=\"note\" id=\"timeline-left-out\">{}</p>\n", text.substr(1));
  }

  void labels() {
    put("<svg class=\"labels\" width=\"{}\" height=\"{:g}\" role=\"img\" aria-label=\"Ranks and rows\">\n", kLabels,
        height());
    put("<text class=\"end\" x=\"{:g}\" y=\"15\">ms</text>\n", kLabels - 8);
    for (size_t i = 0; i < bars_.size(); ++i) {
      const double lanes = top(i) + kComputeHeight + kWait + 2 * kBetween;
      put("<g data-rank=\"{0}\"><title>rank {0} on {1}</title><text class=\"strong\" x=\"0\" y=\"{2:g}\">rank "
          "{0}</text>"
          "<text x=\"0\" y=\"{3:g}\">{4}</text></g>\n",
          traces_[i]->rank, escaped(traces_[i]->host), top(i) + 13, top(i) + 28,
          escaped(shortened(traces_[i]->host, 11)));
      for (const auto& [name, y] : {std::pair("compute", top(i) + 12),
                                    {"wait", top(i) + kComputeHeight + kBetween + 8},
                                    {"requests", lanes + 8}}) {
        put("<text class=\"small end\" x=\"{:g}\" y=\"{:g}\">{}</text>\n", kLabels - 8, y, name);
      }
    }
    put("</svg>\n");
  }

  void plot() {
    const double total = ms(shown_.all.end - shown_.all.begin);
    put("<svg class=\"plot\" width=\"100%\" height=\"{:g}\" role=\"img\" data-ms=\"{:.6f}\" data-top=\"{:g}\" "
        "data-bottom=\"{:g}\" aria-label=\"Computation, exposed waits and requests in flight of {} ranks over {:.3f} "
        "ms\">\n",
        height(), total, kAxis, bottom(), bars_.size(), total);
    for (size_t i = 0; i < bars_.size(); ++i) {
      put("<rect class=\"ground\" x=\"0\" width=\"100%\" y=\"{:g}\" height=\"{:g}\"/>\n", top(i),
          rank_height() - kBetweenRanks);
    }
    put("<g class=\"axis\">");
    for (const double tick : ticks(total, 10)) {
      const double at = 100 * tick / total;
      const char* anchor = at < 2 ? "start" : at > 98 ? "end" : "middle";
      put("<line x1=\"{0:.4f}%\" x2=\"{0:.4f}%\" y1=\"{1:g}\" y2=\"{2:g}\"/>", at, kAxis - 4, bottom());
      for (const double y : {15.0, bottom() + 15}) {
        put("<text class=\"{}\" x=\"{:.4f}%\" y=\"{:g}\">{:g}</text>", anchor, at, y, tick);
      }
    }
    put("</g>\n<svg class=\"bars\" width=\"100%\" height=\"{0:g}\" viewBox=\"0 0 {1:g} {0:g}\" "
        "preserveAspectRatio=\"none\">\n",
        height(), kWidth);
    for (size_t i = 0; i < bars_.size(); ++i) {
      for (const Bar& bar : bars_[i]) draw_bar(bar, *traces_[i], top(i));
    }
    put("</svg>\n<g class=\"names\"></g>\n</svg>\n");
  }

  void draw_bar(const Bar& bar, const RankTrace& trace, double y) {
    const TracedEvent& event = *bar.event;
    double tall = kComputeHeight;
    if (event.kind == TraceKind::compute) {
      put("<rect class=\"compute {}{}\"", family_of(event.phase), is_backward(event.phase) ? " back" : "");
    } else if (event.kind == TraceKind::wait) {
      put("<rect class=\"wait\"");
      y += kComputeHeight + kBetween;
      tall = kWait;
    } else {
      put("<rect class=\"flight {}{}\"", family_of(event.phase), is_backward(event.phase) ? " back" : "");
      y += kComputeHeight + kWait + 2 * kBetween + kLane * static_cast<double>(bar.lane);
      tall = kLane - 1;
    }
    put(" data-rank=\"{}\" data-phase=\"{}\"", trace.rank, escaped(event.phase));
    if (event.layer >= 0) put(" data-layer=\"{}\"", event.layer);
    if (event.micro_batch >= 0) put(" data-micro-batch=\"{}\"", event.micro_batch);
    if (event.bytes > 0) put(" data-bytes=\"{}\"", event.bytes);
    put(" x=\"{:.7g}\" y=\"{:g}\" width=\"{:.5g}\" height=\"{:g}\"/>\n", std::min(x(bar.span.begin), kWidth - kLeast),
        y, std::max(x(bar.span.end) - x(bar.span.begin), kLeast), tall);
  }

  std::vector<const RankTrace*> traces_;  // by rank
  Shown shown_;
  std::vector<std::vector<Bar>> bars_;  // of the ranks that are drawn
  size_t num_lanes_ = 1;
  size_t num_short_ = 0;
  size_t num_hidden_ = 0;
  std::string text_;
};

}  // namespace

std::string timeline(const std::vector<RankTrace>& traces) { return TimelineChart(traces).draw(); }

}  // namespace cadre::page
