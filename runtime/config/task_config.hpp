// SPDX-License-Identifier: Apache-2.0
// The [task] section, read: its lists as what layers/moe/task works with.
#pragma once

#include "layers/router/complexity.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// Throws on an unknown task, and on a priority that does not name each task once.
TaskOptions task_options(const TaskConfig& config);
ComplexityTable complexity_table(const TaskConfig& config);

}  // namespace cadre
