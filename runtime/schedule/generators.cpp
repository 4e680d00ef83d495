// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/generators.hpp"

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>
#include <utility>
#include <vector>

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

}  // namespace cadre
