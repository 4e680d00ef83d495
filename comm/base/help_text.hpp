// SPDX-License-Identifier: Apache-2.0
// The layout of --help.
#pragma once

#include <string>
#include <string_view>

namespace cadre {

// An entry of --help, at most 100 columns wide: `name` at the left, `help` from column `name_width` on, beside the name or,
// where that is long, below it, wrapped at blanks.
std::string help_entry(std::string_view name, std::string_view help, size_t name_width = 32);

}  // namespace cadre
