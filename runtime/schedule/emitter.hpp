// SPDX-License-Identifier: Apache-2.0
// What generators write with: the compute ops of one rank, micro-batches counted for each stage that it holds.
#pragma once

#include <array>
#include <deque>
#include <utility>

#include "runtime/schedule/program.hpp"

namespace cadre {

// A stage of a rank, and the first of the micro-batches that pass it.
struct Phase {
  int stage = 0;
  int first_micro_batch = 0;
};

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

}  // namespace cadre
