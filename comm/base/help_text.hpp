// SPDX-License-Identifier: Apache-2.0
// The layout of --help.
#pragma once

#include <string>
#include <string_view>

namespace cadre {

// An entry of --help, at most 100 columns wide: `name` at the left, `help` beside it or, where the name is long, below it,
// wrapped at blanks.
std::string help_entry(std::string_view name, std::string_view help);

}  // namespace cadre
