// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "runtime/schedule/eight_steps.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/routes.hpp"

namespace cadre {

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

}  // namespace cadre
