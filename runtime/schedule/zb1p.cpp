// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "runtime/schedule/emitter.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/routes.hpp"

namespace cadre {

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

}  // namespace cadre
