// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/walk.hpp"

#include <algorithm>
#include <optional>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

class Walker {
 public:
  Walker(const Program& program, const RunOp& run, Sends sends, double message)
      : program_(program), run_(run), sends_(sends), message_time_(message), clock_(program.ops.size(), 0.0) {
    const auto num_messages = static_cast<size_t>(num_works(program));
    sent_.resize(num_messages);
    posted_.resize(num_messages);
    walk_.stopped_at.resize(program.ops.size(), 0);
    for (const OpList& list : program.ops) walk_.spans.emplace_back(list.size());
  }

  Walk run() {
    for (size_t rank = 0; rank < program_.ops.size(); ++rank) may_go_on_.push_back(rank);
    while (!may_go_on_.empty()) {
      const size_t rank = may_go_on_.back();
      may_go_on_.pop_back();
      size_t& position = walk_.stopped_at[rank];
      while (position < program_.ops[rank].size() && step(rank, position)) ++position;
    }
    return std::move(walk_);
  }

 private:
  struct Event {
    double time;
    size_t position;
  };
  using Events = std::vector<std::optional<Event>>;  // by message

  // False when the rank has to wait.
  bool step(size_t rank, size_t position) {
    const Op& op = program_.ops[rank][position];
    Span& span = walk_.spans[rank][position];
    double& now = clock_[rank];
    if (op.kind == OpKind::receive) {
      const auto message = static_cast<size_t>(index_of(program_, op.feeds));
      posted_[message] = {now, position};
      span = {now, sent_[message] ? arrival_of(message) : now};
      wake(op.peer);
      return true;
    }
    if (op.kind == OpKind::send) {
      const auto message = static_cast<size_t>(index_of(program_, op.feeds));
      if (!sent_[message]) {
        sent_[message] = {run_(rank, position, now), position};
        wake(op.peer);
      }
      span.start = now;
      if (sends_ == Sends::rendezvous) {
        if (!posted_[message]) return false;
        now = std::max(now, posted_[message]->time);
      }
      span.end = now;
      return true;
    }
    double start = now;
    for (const Work& work : works_of(op)) {
      if (!needs_message(program_, work)) continue;
      const auto message = static_cast<size_t>(index_of(program_, work));
      if (!sent_[message] || !posted_[message]) return false;
      const double arrival = arrival_of(message);
      walk_.spans[rank][posted_[message]->position].end = arrival;
      start = std::max(start, arrival);
    }
    span = {start, run_(rank, position, start)};
    now = span.end;
    return true;
  }

  double arrival_of(size_t message) const {
    return std::max(sent_[message]->time, posted_[message]->time) + message_time_;
  }

  void wake(int rank) { may_go_on_.push_back(static_cast<size_t>(rank)); }

  const Program& program_;
  const RunOp& run_;
  Sends sends_;
  double message_time_;
  std::vector<double> clock_;
  Events sent_;
  Events posted_;
  std::vector<size_t> may_go_on_;
  Walk walk_;
};

}  // namespace

double cost_of(const Cost& cost, const Op& op) {
  switch (op.kind) {
    case OpKind::forward: return cost.forward;
    case OpKind::backward: return cost.backward;
    case OpKind::backward_input: return cost.backward_input;
    case OpKind::backward_weight: return cost.backward_weight;
    case OpKind::overlapped: return cost.overlapped;
    case OpKind::receive:
    case OpKind::send: break;
  }
  return 0;
}

bool Walk::finished(const Program& program) const {
  for (size_t rank = 0; rank < stopped_at.size(); ++rank) {
    if (stopped_at[rank] < program.ops[rank].size()) return false;
  }
  return true;
}

Walk walk(const Program& program, const RunOp& run, Sends sends, double message) {
  return Walker(program, run, sends, message).run();
}

Walk walk(const Program& program, const Costs& costs, Sends sends) {
  const RunOp run = [&](size_t rank, size_t position, double start) {
    return start + cost_of(costs[rank], program.ops[rank][position]);
  };
  return walk(program, run, sends);
}

Simulation simulate(const Program& program, const Costs& costs, Sends sends) {
  Walk walked = walk(program, costs, sends);
  CADRE_CHECK(walked.finished(program), fmt::format("{}: the program never ends", program.name),
              "verify says which op waits");
  Simulation simulation;
  for (const auto& spans : walked.spans) {
    for (const Span& span : spans) simulation.makespan = std::max(simulation.makespan, span.end);
  }
  for (size_t rank = 0; rank < program.ops.size(); ++rank) {
    double idle = simulation.makespan;
    for (const Op& op : program.ops[rank]) idle -= cost_of(costs[rank], op);
    simulation.idle.push_back(idle);
  }
  simulation.spans = std::move(walked.spans);
  return simulation;
}

}  // namespace cadre
