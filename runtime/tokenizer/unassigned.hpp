// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace cadre {

// One line about the characters of a text to which the Unicode tables of Oniguruma assign nothing, and newer ones may;
// empty where there are none.
std::string note_on_unassigned(std::string_view text);

}  // namespace cadre
