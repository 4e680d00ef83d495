// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/emitter.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/routes.hpp"

namespace cadre {

Program pair(int num_micro_batches) {
  Emitter emit({.stage = 0});
  emit.forward();
  repeat(num_micro_batches - 1, [&] { emit.overlapped(0, 0); });
  emit.backward();
  return {.name = "pair",
          .num_ranks = 1,
          .num_stages = 1,
          .num_micro_batches = num_micro_batches,
          .routes = {route_down(1)},
          .ops = {emit.take()}};
}

}  // namespace cadre
