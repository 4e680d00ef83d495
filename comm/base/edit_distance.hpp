// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

namespace cadre {

// How many letters must be replaced, added or taken away to make one text of the other (Levenshtein 1966).
size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace cadre
