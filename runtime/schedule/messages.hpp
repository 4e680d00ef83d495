// SPDX-License-Identifier: Apache-2.0
// From the compute ops of a generator to a program with every message in it.
#pragma once

#include "runtime/schedule/program.hpp"

namespace cadre {

// Sends stand right behind the op that made the rows. Each receive stands as late as it can without ever holding up the
// sender at unit costs, so that a receive buffer is taken about one op before its rows come, and sends that wait for
// their receiver cost no time and cannot close a circle.
Program add_messages(Program program);

}  // namespace cadre
