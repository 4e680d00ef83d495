// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "comm/liveness/liveness.hpp"
#include "comm/transport/transport.hpp"

namespace cadre {

// Collective over `world`, all processes of the job; its messages carry the job's secret. From here on the context of the
// job has it.
void start_liveness(Transport& world);

}  // namespace cadre
