// SPDX-License-Identifier: Apache-2.0
// cadre plan: what a run would do, worked out beforehand in one process.
#include "launch/plan/plan.hpp"

namespace cadre {

Command plan_command() {
  return {.name = "plan",
          .summary = "works out beforehand what a run would do",
          .parts = {plan_dispatch_command(), plan_placement_command(), plan_schedule_command()}};
}

}  // namespace cadre
