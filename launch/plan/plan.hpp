// SPDX-License-Identifier: Apache-2.0
// The parts of `cadre plan`: each works out in one process what a run would do, without running it.
#pragma once

#include "launch/command.hpp"

namespace cadre {

Command plan_dispatch_command();
Command plan_placement_command();
Command plan_schedule_command();

}  // namespace cadre
