// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/run_passes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

std::vector<double> sending_times(const Program& program, const Walk& walk) {
  std::vector<double> sent(static_cast<size_t>(num_works(program)));
  for (size_t row = 0; row < program.ops.size(); ++row) {
    for (size_t i = 0; i < program.ops[row].size(); ++i) {
      const Op& op = program.ops[row][i];
      if (op.kind == OpKind::send) sent[static_cast<size_t>(index_of(program, op.feeds))] = walk.spans[row][i].start;
    }
  }
  return sent;
}

// Rows on their way to the rank of a row, from the send to the end of the receive.
std::vector<ClockSpan> rows_to(const Program& program, const PassesRun& run, size_t row) {
  std::vector<ClockSpan> flights;
  const OpList& ops = program.ops[row];
  for (size_t i = 0; i < ops.size(); ++i) {
    if (ops[i].kind != OpKind::receive) continue;
    flights.push_back({run.sent[static_cast<size_t>(index_of(program, ops[i].feeds))], run.walk.spans[row][i].end});
  }
  return union_of(std::move(flights));
}

// Of a rank, between its ops.
std::vector<ClockSpan> gaps_of(const OpList& ops, const std::vector<Span>& spans) {
  std::vector<ClockSpan> gaps;
  double now = 0.0;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (is_message(ops[i])) continue;
    if (spans[i].start > now) gaps.push_back({now, spans[i].start});
    now = std::max(now, spans[i].end);
  }
  return gaps;
}

// What is left of [0, end] without `spans`, a union.
std::vector<ClockSpan> complement_of(const std::vector<ClockSpan>& spans, double end) {
  std::vector<ClockSpan> left;
  double now = 0.0;
  for (const ClockSpan& span : spans) {
    if (span.begin > now) left.push_back({now, std::min(span.begin, end)});
    now = std::max(now, span.end);
  }
  if (end > now) left.push_back({now, end});
  return left;
}

}  // namespace

PassesRun run_passes(const StepShape& shape, ClockOverlap overlap, bool hands_values) {
  PassesRun run;
  const Program& program = shape.program;
  for (int row = 0; row < program.num_ranks; ++row) {
    run.clocks.emplace_back(program, row, shape.stages, shape.link, overlap);
    if (hands_values) run.clocks.back().start_values(0.0);
  }
  const RunOp run_op = [&](size_t row, size_t position, double start) { return run.clocks[row].run(position, start); };
  run.walk = walk(program, run_op, Sends::eager, shape.message_s);
  CADRE_CHECK(run.walk.finished(program), fmt::format("{}: the program never ends", program.name),
              "cadre plan schedule says which op waits");
  for (size_t row = 0; row < run.clocks.size(); ++row) {
    const std::vector<Span>& spans = run.walk.spans[row];
    double end = 0.0;
    for (size_t i = 0; i < spans.size(); ++i) {
      if (!is_message(program.ops[row][i])) end = std::max(end, spans[i].end);
    }
    run.ends.push_back(run.clocks[row].finish(end));
  }
  run.sent = sending_times(program, run.walk);
  return run;
}

RowSpans spans_of_row(const StepShape& shape, const PassesRun& run, int row) {
  const auto index = static_cast<size_t>(row);
  const RankClock& clock = run.clocks[index];
  const std::vector<ClockSpan> gaps = gaps_of(shape.program.ops[index], run.walk.spans[index]);
  RowSpans spans;
  spans.rows = rows_to(shape.program, run, index);
  spans.exposed = common_of(gaps, spans.rows);
  spans.exposed.insert(spans.exposed.end(), clock.waits().begin(), clock.waits().end());
  spans.exposed = union_of(std::move(spans.exposed));
  std::vector<ClockSpan> not_working = gaps;
  not_working.insert(not_working.end(), clock.waits().begin(), clock.waits().end());
  spans.working = complement_of(union_of(std::move(not_working)), run.ends[index]);
  spans.flights = clock.flights();
  spans.flights.insert(spans.flights.end(), spans.rows.begin(), spans.rows.end());
  spans.flights = union_of(std::move(spans.flights));
  return spans;
}

std::vector<int> stages_of_row(const Program& program, int row) {
  std::vector<int> stages;
  for (int stage = 0; stage < program.num_stages; ++stage) {
    const auto here = [&](const std::vector<int>& route) { return route[static_cast<size_t>(stage)] == row; };
    if (std::ranges::any_of(program.routes, here)) stages.push_back(stage);
  }
  return stages;
}

double tail_of_row(const StepShape& shape, int row) {
  double seconds = 0.0;
  for (const int stage : stages_of_row(shape.program, row)) seconds += shape.tail_s[static_cast<size_t>(stage)];
  return seconds;
}

}  // namespace cadre
