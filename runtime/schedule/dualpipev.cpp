// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/eight_steps.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/routes.hpp"

namespace cadre {

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

}  // namespace cadre
