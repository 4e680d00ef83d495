// SPDX-License-Identifier: Apache-2.0
// cadre plan: what a run would do, worked out beforehand in one process.
#include "launch/plan/plan.hpp"

namespace cadre {

Command plan_command() {
  return {.name = "plan",
          .summary = "plans parts of a run without running it",
          .parts = {plan_dispatch_command(), plan_placement_command(), plan_schedule_command()}};
}

}  // namespace cadre
