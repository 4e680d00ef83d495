// SPDX-License-Identifier: Apache-2.0
// Fields of a tokenizer.json, which anybody may have written. What is missing or of another type throws; messages name
// the field as a path from the top of the file.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>

namespace cadre {

// An object or list that must be there. `where` is the path of `object`, "" at the top.
const nlohmann::json& field(const nlohmann::json& object, const std::string& where, const char* name,
                            nlohmann::json::value_t type);

// Missing or null: the default.
bool flag(const nlohmann::json& object, const std::string& where, const char* name, bool otherwise);
std::string text(const nlohmann::json& object, const std::string& where, const char* name,
                 const std::string& otherwise);

// The `type` of an object; "" for null.
std::string type_of(const nlohmann::json& object, const std::string& where);

// An id of a token.
int32_t token_id(const nlohmann::json& value, const std::string& where);

// A string of the file in a message: quoted, and cut where it is long.
std::string quoted(const std::string& text);

}  // namespace cadre
