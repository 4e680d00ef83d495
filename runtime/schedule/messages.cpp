// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {
namespace {

// Of the rank that runs `work`.
Op receive_for(const Program& program, Work work) {
  return {.kind = OpKind::receive, .peer = program.rank_of(work_before(program, work)->chunk), .feeds = work};
}

void append_sends(const Program& program, const Op& op, OpList& list) {
  for (const Work& work : works_of(op)) {
    const auto next = work_after(program, work);
    if (!next || !needs_message(program, *next)) continue;
    list.push_back({.kind = OpKind::send, .peer = program.rank_of(next->chunk), .feeds = *next});
  }
}

// receives[rank][i] go in front of the i-th compute op.
using Receives = std::vector<std::vector<OpList>>;

std::vector<OpList> with_messages(const Program& compute, const Receives& receives) {
  std::vector<OpList> lists(compute.ops.size());
  for (size_t rank = 0; rank < compute.ops.size(); ++rank) {
    OpList& list = lists[rank];
    const Op* done = nullptr;
    for (size_t i = 0; i < compute.ops[rank].size(); ++i) {
      list.insert(list.end(), receives[rank][i].begin(), receives[rank][i].end());
      if (done != nullptr) append_sends(compute, *done, list);
      done = &compute.ops[rank][i];
      list.push_back(*done);
    }
    if (done != nullptr) append_sends(compute, *done, list);
  }
  return lists;
}

// Each receive right in front of the op that needs it: the earliest any op can start when sends wait for nobody.
Receives latest_receives(const Program& compute) {
  Receives receives;
  for (const OpList& list : compute.ops) {
    auto& of_rank = receives.emplace_back(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      for (const Work& work : works_of(list[i])) {
        if (needs_message(compute, work)) of_rank[i].push_back(receive_for(compute, work));
      }
    }
  }
  return receives;
}

struct Timeline {
  std::vector<std::vector<double>> op_ends;  // of the compute ops of each rank
  std::vector<double> work_end;              // by work
};

Timeline unit_cost_timeline(const Program& program) {
  const Walk walked = walk(program, equal_costs(program), Sends::eager);
  Timeline timeline;
  timeline.work_end.resize(static_cast<size_t>(num_works(program)));
  for (size_t rank = 0; rank < program.ops.size(); ++rank) {
    auto& ends = timeline.op_ends.emplace_back();
    for (size_t i = 0; i < program.ops[rank].size(); ++i) {
      const Op& op = program.ops[rank][i];
      if (is_message(op)) continue;
      ends.push_back(walked.spans[rank][i].end);
      for (const Work& work : works_of(op)) {
        timeline.work_end[static_cast<size_t>(index_of(program, work))] = ends.back();
      }
    }
  }
  return timeline;
}

}  // namespace

Program add_messages(Program program) {
  const Program compute = program;
  const Receives latest = latest_receives(compute);
  program.ops = with_messages(compute, latest);
  const Timeline timeline = unit_cost_timeline(program);

  Receives in_time;
  for (size_t rank = 0; rank < compute.ops.size(); ++rank) {
    auto& of_rank = in_time.emplace_back(compute.ops[rank].size());
    const std::vector<double>& ends = timeline.op_ends[rank];
    for (size_t i = 0; i < latest[rank].size(); ++i) {
      for (const Op& receive : latest[rank][i]) {
        // The last place that the rank reaches no later than the rows are made.
        const Work maker = *work_before(compute, receive.feeds);
        const double made = timeline.work_end[static_cast<size_t>(index_of(compute, maker))];
        const auto place = static_cast<size_t>(std::ranges::upper_bound(ends, made) - ends.begin());
        of_rank[std::min(i, place)].push_back(receive);
      }
    }
  }
  program.ops = with_messages(compute, in_time);
  return program;
}

}  // namespace cadre
