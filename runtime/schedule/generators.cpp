// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/generators.hpp"

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>
#include <utility>
#include <vector>

#include "runtime/schedule/walk.hpp"

namespace cadre {
namespace {

// Ways through the ranks: what Program::routes is made of.
// 0 1 2 3
std::vector<int> route_down(int num_ranks) {
  std::vector<int> route(static_cast<size_t>(num_ranks));
  std::iota(route.begin(), route.end(), 0);
  return route;
}

// 3 2 1 0
std::vector<int> route_up(int num_ranks) {
  std::vector<int> route = route_down(num_ranks);
  std::ranges::reverse(route);
  return route;
}

// 0 1 2 3 3 2 1 0
std::vector<int> route_v(int num_ranks) {
  std::vector<int> route = route_down(num_ranks);
  route.insert(route.end(), route.rbegin(), route.rend());
  return route;
}

// A stage of a rank, and the first of the micro-batches that pass it.
struct Phase {
  int stage = 0;
  int first_micro_batch = 0;
};

// Collects the compute ops of one rank, and counts micro-batches for each stage that it holds.
class Emitter {
 public:
  explicit Emitter(Phase first, Phase second = {}) : forwards_{start(first), start(second)}, backwards_(forwards_) {}

  // Each takes the next micro-batch of its phase.
  void forward(int phase = 0) { ops_.push_back({OpKind::forward, next(forwards_, phase)}); }
  void backward(int phase = 0) { ops_.push_back({OpKind::backward, next(backwards_, phase)}); }
  void backward_input(int phase = 0) {
    deferred_.push_back(next(backwards_, phase));
    ops_.push_back({OpKind::backward_input, deferred_.back()});
  }
  void overlapped(int forward_phase, int backward_phase) {
    ops_.push_back({OpKind::overlapped, next(forwards_, forward_phase), next(backwards_, backward_phase)});
  }
  // Of the oldest backward_input that waits for it.
  void weight() {
    ops_.push_back({OpKind::backward_weight, deferred_.front()});
    deferred_.pop_front();
  }
  int num_deferred_weights() const { return static_cast<int>(deferred_.size()); }

  OpList take() { return std::move(ops_); }

 private:
  using Chunks = std::array<Chunk, 2>;  // what comes next in each phase

  static Chunk start(Phase phase) { return {phase.stage, phase.first_micro_batch}; }
  static Chunk next(Chunks& chunks, int phase) {
    Chunk& chunk = chunks[static_cast<size_t>(phase)];
    return {chunk.stage, chunk.micro_batch++};
  }

  Chunks forwards_;
  Chunks backwards_;
  std::deque<Chunk> deferred_;
  OpList ops_;
};

template <class Body>
void repeat(int times, Body&& body) {
  for (int i = 0; i < times; ++i) body();
}

// Where a rank stands in the pipeline: between the end at which the micro-batches of phase 0 enter, and the middle (or
// the turn of the V), where the phases meet.
struct PlaceInPipeline {
  int from_end;   // ranks between this one and its end
  int to_middle;  // ranks between this one and the middle
};

// The ops of a rank in DualPipe and DualPipeV, which differ only in where its two stages lie. `num_micro_batches` pass each
// phase.
OpList eight_steps(std::array<Phase, 2> phases, PlaceInPipeline place, int num_micro_batches) {
  const int to_middle = place.to_middle;
  const int to_end = place.from_end + 1;  // this rank included
  Emitter emit(phases[0], phases[1]);

  // 1: F0
  repeat(2 * to_middle, [&] { emit.forward(0); });
  // 2: F0 F1
  repeat(to_end, [&] {
    emit.forward(0);
    emit.forward(1);
  });
  // 3: b1 W F1
  repeat(to_middle, [&] {
    emit.backward_input(1);
    emit.weight();
    emit.forward(1);
  });
  // 4: {F0&B1} {F1&B0}; in the middle the gradients for the first backward are still on their way, and its
  // forward does not wait for them
  const int main = num_micro_batches - 2 * to_middle - to_end;
  for (int i = 0; i < main; ++i) {
    if (to_middle == 0 && i == 0) {
      emit.forward(0);
      emit.backward(1);
    } else {
      emit.overlapped(0, 1);
    }
    emit.overlapped(1, 0);
  }
  // 5: B1 {F1&B0}
  repeat(to_middle, [&] {
    emit.backward(1);
    emit.overlapped(1, 0);
  });
  // 6: B1 B0, split from the half on
  for (int i = 0; i < 2 * to_end; ++i) {
    const int phase = 1 - i % 2;
    if (i < to_end) {
      emit.backward(phase);
    } else {
      emit.backward_input(phase);
    }
  }
  // 7: W b0
  repeat(to_middle, [&] {
    emit.weight();
    emit.backward_input(0);
  });
  // 8: W
  repeat(to_end, [&] { emit.weight(); });
  return emit.take();
}

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

// Each receive right in front of the op that needs it: the earliest any op can start when no send waits for its receive.
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

Program one_f_one_b(int num_ranks, int num_micro_batches) {
  Program program = {.name = "1f1b",
                     .num_ranks = num_ranks,
                     .num_stages = num_ranks,
                     .num_micro_batches = num_micro_batches,
                     .routes = {route_down(num_ranks)}};
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int warm_up = std::min(num_ranks - 1 - rank, num_micro_batches);
    Emitter emit({.stage = rank});
    repeat(warm_up, [&] { emit.forward(); });
    repeat(num_micro_batches - warm_up, [&] {
      emit.forward();
      emit.backward();
    });
    repeat(warm_up, [&] { emit.backward(); });
    program.ops.push_back(emit.take());
  }
  return program;
}

Program zb1p(int num_ranks, int num_micro_batches) {
  Program program = {.name = "zb1p",
                     .num_ranks = num_ranks,
                     .num_stages = num_ranks,
                     .num_micro_batches = num_micro_batches,
                     .routes = {route_down(num_ranks)}};
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int warm_up = std::min(num_ranks - 1 - rank, num_micro_batches);
    Emitter emit({.stage = rank});
    // Rank r may keep r weight gradients waiting: as many chunks as its warm-up is shorter than that of rank 0.
    const auto split_backward = [&] {
      emit.backward_input();
      if (emit.num_deferred_weights() > rank) emit.weight();
    };
    repeat(warm_up, [&] { emit.forward(); });
    repeat(num_micro_batches - warm_up, [&] {
      emit.forward();
      split_backward();
    });
    repeat(warm_up, split_backward);
    repeat(emit.num_deferred_weights(), [&] { emit.weight(); });
    program.ops.push_back(emit.take());
  }
  return program;
}

Program dualpipe(int num_ranks, int num_micro_batches) {
  const int half_ranks = num_ranks / 2;
  const int half_micro_batches = num_micro_batches / 2;
  Program program = {.name = "dualpipe",
                     .num_ranks = num_ranks,
                     .num_stages = num_ranks,
                     .num_micro_batches = num_micro_batches,
                     .routes = {route_down(num_ranks), route_up(num_ranks)}};
  for (int rank = 0; rank < num_ranks; ++rank) {
    const Phase down = {.stage = rank, .first_micro_batch = 0};
    const Phase up = {.stage = num_ranks - 1 - rank, .first_micro_batch = half_micro_batches};
    const int from_end = std::min(down.stage, up.stage);
    const PlaceInPipeline place = {.from_end = from_end, .to_middle = half_ranks - 1 - from_end};
    program.ops.push_back(rank < half_ranks ? eight_steps({down, up}, place, half_micro_batches)
                                            : eight_steps({up, down}, place, half_micro_batches));
  }
  return program;
}

Program dualpipev(int num_ranks, int num_micro_batches) {
  const int num_stages = 2 * num_ranks;
  Program program = {.name = "dualpipev",
                     .num_ranks = num_ranks,
                     .num_stages = num_stages,
                     .num_micro_batches = num_micro_batches,
                     .routes = {route_v(num_ranks)}};
  for (int rank = 0; rank < num_ranks; ++rank) {
    const PlaceInPipeline place = {.from_end = rank, .to_middle = num_ranks - 1 - rank};
    program.ops.push_back(eight_steps({{{.stage = rank}, {.stage = num_stages - 1 - rank}}}, place, num_micro_batches));
  }
  return program;
}

Program pair(int num_micro_batches, int ramp) {
  const int depth = std::clamp(ramp, 1, num_micro_batches);
  Emitter emit({.stage = 0});
  repeat(depth, [&] { emit.forward(); });
  repeat(num_micro_batches - depth, [&] { emit.overlapped(0, 0); });
  repeat(depth, [&] { emit.backward(); });
  OpList ops = emit.take();
  for (int i = 0; i + 1 < depth; ++i) {
    ops[static_cast<size_t>(i)].with_next = true;
    ops[ops.size() - 2 - static_cast<size_t>(i)].with_next = true;
  }
  return {.name = "pair",
          .num_ranks = 1,
          .num_stages = 1,
          .num_micro_batches = num_micro_batches,
          .routes = {route_down(1)},
          .ops = {std::move(ops)}};
}

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
