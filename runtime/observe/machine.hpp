// SPDX-License-Identifier: Apache-2.0
// What this process may compute on, for traces: hosts that are namespaces or containers of one machine share its cores.
#pragma once

#include <string>
#include <vector>

namespace cadre {

// The same for all processes of one machine since it started; "" where the system does not tell.
std::string machine_id();

// The cores that this process may use, each by the number of its first cpu, ascending: cpus of one core count once.
std::vector<int> cores_of_process();

}  // namespace cadre
