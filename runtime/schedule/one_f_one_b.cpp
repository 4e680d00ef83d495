// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "runtime/schedule/emitter.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/routes.hpp"

namespace cadre {

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

}  // namespace cadre
