// SPDX-License-Identifier: Apache-2.0
// Documents in JSON Lines: each line is an object, and one of its fields is the text.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "runtime/data/documents.hpp"

namespace cadre {

// By its name: .jsonl, .ndjson or .json.
bool is_json_lines(const std::filesystem::path& path);

// The string `field` of the object that the line is. Throws on anything else; `where` begins the message.
std::string text_of_json_line(std::string_view line, const std::string& field, const std::string& where);

// The texts of all lines that are not blank, with the separator between each two; empty texts are left out. Throws where there is
// no text.
Documents read_json_lines(const std::string& path, const std::string& field, std::string_view separator);

}  // namespace cadre
