// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace cadre {

// The name of this host, at most 255 characters; "an unknown host" where the system gives none.
std::string host_name();

}  // namespace cadre
