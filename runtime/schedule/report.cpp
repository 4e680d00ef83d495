// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "runtime/schedule/make_program.hpp"

namespace cadre {
namespace {

// Costs are sums of decimal fractions: what rounding leaves behind is not shown.
double rounded(double value) {
  constexpr double kSteps = 1e9;
  return std::round(value * kSteps) / kSteps + 0.0;
}

template <class Number>
std::string by_rank(const std::vector<Number>& values) {
  std::vector<double> shown;
  for (const Number value : values) shown.push_back(rounded(static_cast<double>(value)));
  if (std::ranges::adjacent_find(shown, std::ranges::not_equal_to()) == shown.end()) {
    return fmt::format("{:g} on every rank", shown.front());
  }
  return fmt::format("{:g} to {:g}; by rank {:g}", *std::ranges::min_element(shown), *std::ranges::max_element(shown),
                     fmt::join(shown, " "));
}

const char* kind_name(OpKind kind) {
  switch (kind) {
    case OpKind::forward: return "forward";
    case OpKind::backward: return "backward";
    case OpKind::backward_input: return "backward_input";
    case OpKind::backward_weight: return "backward_weight";
    case OpKind::overlapped: return "overlapped";
    case OpKind::receive: return "receive";
    case OpKind::send: return "send";
  }
  return "";
}

nlohmann::json op_json(const Program& program, const Op& op, const Span& span) {
  const Chunk chunk = is_message(op) ? op.feeds.chunk : op.chunk;
  nlohmann::json entry = {{"op", name_of(program, op)},   {"kind", kind_name(op.kind)},
                          {"stage", chunk.stage},         {"micro_batch", chunk.micro_batch},
                          {"start", rounded(span.start)}, {"end", rounded(span.end)}};
  if (op.kind == OpKind::overlapped) {
    entry["back_stage"] = op.back_chunk.stage;
    entry["back_micro_batch"] = op.back_chunk.micro_batch;
  }
  if (is_message(op)) {
    entry["rows"] = op.feeds.pass == Pass::forward ? "activations" : "gradients";
    entry["peer"] = op.peer;
    entry["tag"] = index_of(program, op.feeds);
  }
  return entry;
}

// In pixels.
constexpr double kLeft = 72;
constexpr double kRight = 24;
constexpr double kTop = 92;
constexpr double kRow = 30;
constexpr double kBar = 26;
constexpr double kDigit = 6.2;  // width of a digit in the smaller of the two fonts
constexpr double kWanted = 1560;

struct Kind {
  OpKind op;
  const char* style;  // name of the class
  const char* fill[2];
  const char* text[2];
  const char* label;
};

// Light and dark of one hue each; the text on them has a contrast of at least 4.5 : 1.
constexpr Kind kKinds[] = {
    {OpKind::forward, "f", {"#a9c7f5", "#2f62b5"}, {"#10264d", "#ffffff"}, "forward"},
    {OpKind::backward, "b", {"#a6dcae", "#24713a"}, {"#0c3217", "#ffffff"}, "backward"},
    {OpKind::backward_input, "i", {"#9fdfe0", "#126c73"}, {"#06333a", "#ffffff"}, "input gradient"},
    {OpKind::backward_weight, "w", {"#f6d38c", "#9a5b00"}, {"#4a2c00", "#ffffff"}, "weight gradient"},
};

std::string escaped(std::string text) {
  if (const size_t at = text.find('&'); at != std::string::npos) text.replace(at, 1, "&amp;");
  return text;
}

const Kind& kind_of(OpKind op) { return *std::ranges::find(kKinds, op, &Kind::op); }

class Chart {
 public:
  explicit Chart(const ScheduleReport& report)
      : report_(report),
        program_(report.program),
        unit_(std::clamp(kWanted / std::max(report.simulation.makespan, 1e-9), 3.5 / shortest(), 32.0 / shortest())),
        width_(std::max(kLeft + report.simulation.makespan * unit_ + kRight, 860.0)),
        height_(kTop + kRow * report.program.num_ranks + 44) {}

  std::string draw() {
    head();
    legend();
    axis();
    for (size_t rank = 0; rank < program_.ops.size(); ++rank) row(rank);
    return text_ + "</svg>\n";
  }

 private:
  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  double shortest() const {
    const Cost& c = report_.cost;
    return std::min({c.forward, c.backward, c.backward_input, c.backward_weight, c.overlapped});
  }

  double x(double time) const { return kLeft + time * unit_; }
  static double y(size_t rank) { return kTop + kRow * static_cast<double>(rank); }

  void head() {
    put("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\" "
        "font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"12\">\n<style>\n"
        ".n {{font-size: 11px; text-anchor: middle}} .h {{font-size: 9.5px; text-anchor: middle}}\n"
        ".t {{fill: #5b6472}} .e {{text-anchor: end}} .m {{text-anchor: middle}}\n",
        width_, height_);
    for (const Kind& kind : kKinds) {
      for (int phase = 0; phase < 2; ++phase) {
        put(".{0}{1} {{fill: {2}}} .{0}{1}t {{fill: {3}}}\n", kind.style, phase, kind.fill[phase], kind.text[phase]);
      }
    }
    put("</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    const auto [least, most] = std::ranges::minmax(report_.simulation.idle);
    put("<text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"600\" fill=\"#1d2430\">{}, {} ranks, {} "
        "micro-batches</text>\n",
        program_.name, program_.num_ranks, program_.num_micro_batches);
    put("<text class=\"t\" x=\"16\" y=\"48\">makespan {:.6g}, idle {} a rank (formula {:.6g}), at most {} forwards "
        "live{}</text>\n",
        report_.simulation.makespan,
        most - least < 1e-9 ? fmt::format("{:.4g}", most + 0.0) : fmt::format("{:.4g} to {:.4g}", least, most),
        report_.formula, *std::ranges::max_element(report_.footprint.peak_live_forwards),
        program_.note.empty() ? "" : "; " + program_.note);
  }

  void legend() {
    const int num_phases = has_two_phases(program_) ? 2 : 1;
    double at = 16;
    const auto swatch = [&](const char* style, int phase, double top, double tall) {
      put("<rect class=\"{}{}\" x=\"{:g}\" y=\"{:g}\" width=\"14\" height=\"{:g}\"/>\n", style, phase, at, top, tall);
    };
    const auto label = [&](const std::string& text) {
      put("<text class=\"t\" x=\"{:g}\" y=\"75\">{}</text>\n", at + 6, text);
      at += 6 + 6.9 * static_cast<double>(text.size()) + 18;
    };
    for (const Kind& kind : kKinds) {
      if (!occurs(kind.op)) continue;
      for (int phase = 0; phase < num_phases; ++phase, at += 14) swatch(kind.style, phase, 64, 14);
      label(num_phases == 2 ? std::string(kind.label) + " a, b" : kind.label);
    }
    if (occurs(OpKind::overlapped)) {
      swatch("f", 0, 64, 7);
      swatch("b", num_phases - 1, 71, 7);
      at += 14;
      label("forward beside backward");
    }
    put("<rect x=\"{:g}\" y=\"64\" width=\"14\" height=\"14\" fill=\"#eef0f3\"/>\n", at);
    at += 14;
    label("idle");
  }

  // About a dozen ticks at 1, 2 or 5 times a power of ten.
  double tick() const {
    const double wanted = std::max(report_.simulation.makespan, 1e-9) / 12;
    const double power = std::pow(10.0, std::floor(std::log10(wanted)));
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor * power >= wanted) return factor * power;
    }
    return 10 * power;
  }

  void axis() {
    const double bottom = y(program_.ops.size());
    for (int i = 0; i * tick() <= report_.simulation.makespan * (1 + 1e-9); ++i) {
      put("<path d=\"M{0:.2f} {1:g}V{2:g}\" stroke=\"#dfe3e8\"/>\n", x(i * tick()), kTop - 4, bottom + 4);
      put("<text class=\"t m\" x=\"{:.2f}\" y=\"{:g}\">{:g}</text>\n", x(i * tick()), bottom + 20, i * tick());
    }
    put("<text class=\"t e\" x=\"{:g}\" y=\"{:g}\">time</text>\n", kLeft - 10, bottom + 20);
  }

  void row(size_t rank) {
    put("<text class=\"t e\" x=\"{:g}\" y=\"{:g}\">rank {}</text>\n", kLeft - 10, y(rank) + kBar / 2 + 4, rank);
    put("<rect x=\"{:g}\" y=\"{:g}\" width=\"{:.2f}\" height=\"{:g}\" fill=\"#eef0f3\"/>\n", kLeft, y(rank),
        report_.simulation.makespan * unit_, kBar);
    for (size_t i = 0; i < program_.ops[rank].size(); ++i) {
      const Op& op = program_.ops[rank][i];
      if (is_message(op)) continue;
      const Span& span = report_.simulation.spans[rank][i];
      put("<g><title>{}: {:g} to {:g}</title>", escaped(name_of(program_, op)), span.start, span.end);
      if (op.kind == OpKind::overlapped) {
        bar(OpKind::forward, op.chunk, span, y(rank), kBar / 2);
        bar(OpKind::backward, op.back_chunk, span, y(rank) + kBar / 2, kBar / 2);
      } else {
        bar(op.kind, op.chunk, span, y(rank), kBar);
      }
      put("</g>\n");
    }
  }

  bool occurs(OpKind kind) const {
    return std::ranges::any_of(
        program_.ops, [&](const OpList& list) { return std::ranges::find(list, kind, &Op::kind) != list.end(); });
  }

  void bar(OpKind kind, Chunk chunk, const Span& span, double top, double tall) {
    const char* style = kind_of(kind).style;
    const int phase = phase_of(program_, chunk);
    const double wide = (span.end - span.start) * unit_ - std::min(1.0, 0.15 * unit_);
    put("<rect class=\"{}{}\" x=\"{:.2f}\" y=\"{:g}\" width=\"{:.2f}\" height=\"{:g}\"/>", style, phase, x(span.start),
        top, wide, tall);
    const std::string number = fmt::format("{}", number_of(program_, chunk));
    if (wide < kDigit * static_cast<double>(number.size()) + 2) return;
    put("<text class=\"{} {}{}t\" x=\"{:.2f}\" y=\"{:g}\">{}</text>", tall < kBar ? "h" : "n", style, phase,
        x(span.start) + wide / 2, top + tall / 2 + (tall < kBar ? 3.4 : 4), number);
  }

  const ScheduleReport& report_;
  const Program& program_;
  double unit_;  // pixels a unit of time
  double width_;
  double height_;
  std::string text_;
};

}  // namespace

ScheduleReport report_schedule(Program program, const Cost& cost) {
  Footprint footprint = verify(program);
  Simulation simulation = simulate(program, cost);
  const double formula = formula_bubble(program, cost);
  return {std::move(program), cost, std::move(footprint), std::move(simulation), formula};
}

std::string report_text(const ScheduleReport& report) {
  const Program& program = report.program;
  const Cost& cost = report.cost;
  std::string text = fmt::format("{}: {} ranks, {} stages, {} micro-batches\n", program.name, program.num_ranks,
                                 program.num_stages, program.num_micro_batches);
  if (!program.note.empty()) text += fmt::format("note: {}\n", program.note);
  text += '\n' + lists_text(program) + '\n';
  text += fmt::format("cost           F {:g}, B {:g}, Bi {:g}, W {:g}, F&B {:g}; messages nothing\n", cost.forward,
                      cost.backward, cost.backward_input, cost.backward_weight, cost.overlapped);
  text += fmt::format("makespan       {:g}\n", rounded(report.simulation.makespan));
  text += fmt::format("idle           {}\n", by_rank(report.simulation.idle));
  text += fmt::format("by formula     {:g} = {}\n", rounded(report.formula), formula_text(program));
  text += fmt::format("live forwards  at most {}\n", by_rank(report.footprint.peak_live_forwards));
  text += fmt::format("waiting W      at most {}\n", by_rank(report.footprint.peak_deferred_weights));
  return text + "verified       complete, paired, ends with eager and with rendezvous sends\n";
}

nlohmann::json report_json(const ScheduleReport& report) {
  const Program& program = report.program;
  const Cost& cost = report.cost;
  nlohmann::json lists = nlohmann::json::array();
  for (size_t rank = 0; rank < program.ops.size(); ++rank) {
    nlohmann::json list = nlohmann::json::array();
    for (size_t i = 0; i < program.ops[rank].size(); ++i) {
      list.push_back(op_json(program, program.ops[rank][i], report.simulation.spans[rank][i]));
    }
    lists.push_back(std::move(list));
  }
  std::vector<double> idle;
  for (const double value : report.simulation.idle) idle.push_back(rounded(value));
  return {{"schema", "cadre.schedule/1"},
          {"schedule", program.name},
          {"note", program.note},
          {"ranks", program.num_ranks},
          {"stages", program.num_stages},
          {"micro_batches", program.num_micro_batches},
          {"routes", program.routes},
          {"cost",
           {{"F", cost.forward},
            {"B", cost.backward},
            {"Bi", cost.backward_input},
            {"W", cost.backward_weight},
            {"FB", cost.overlapped}}},
          {"makespan", rounded(report.simulation.makespan)},
          {"idle", idle},
          {"formula", formula_text(program)},
          {"formula_bubble", rounded(report.formula)},
          {"peak_live_forwards", report.footprint.peak_live_forwards},
          {"peak_deferred_weights", report.footprint.peak_deferred_weights},
          {"lists", std::move(lists)}};
}

std::string report_svg(const ScheduleReport& report) { return Chart(report).draw(); }

}  // namespace cadre
