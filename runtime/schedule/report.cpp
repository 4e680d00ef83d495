// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>

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

}  // namespace cadre
