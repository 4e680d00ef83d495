// SPDX-License-Identifier: Apache-2.0
// Names that other programs give to keys of a run file, for hints.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// A hint for an unknown key: the key that other programs call so ("lr", "n_experts", "--batch-size"), else the nearest of
// `known`; empty when nothing is near.
std::string key_hint(std::string_view name, std::span<const std::string> known);

// The key that other programs call `name`, with or without its section or leading dashes; empty: none.
std::string key_called(std::string_view name);

// The keys that have other names.
std::vector<std::string> synonym_keys();

}  // namespace cadre
