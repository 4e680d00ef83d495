// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/json_fields.hpp"

#include <fmt/format.h>

#include <limits>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr size_t kQuotedBytes = 64;

std::string path(const std::string& where, const char* name) { return where.empty() ? name : where + "." + name; }

// nullptr where it is missing or null.
const json* find_field(const json& object, const std::string& where, const char* name) {
  CADRE_CHECK(object.is_object(), fmt::format("{} is {}, allowed: an object", where, object.type_name()));
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

}  // namespace

const json& field(const json& object, const std::string& where, const char* name, json::value_t type) {
  const json* found = find_field(object, where, name);
  CADRE_CHECK(found != nullptr, fmt::format("{} is missing", path(where, name)));
  CADRE_CHECK(found->type() == type,
              fmt::format("{} is {}, allowed: {}", path(where, name), found->type_name(), json(type).type_name()));
  return *found;
}

bool flag(const json& object, const std::string& where, const char* name, bool otherwise) {
  const json* found = find_field(object, where, name);
  if (found == nullptr) return otherwise;
  CADRE_CHECK(found->is_boolean(),
              fmt::format("{} is {}, allowed: true or false", path(where, name), found->type_name()));
  return found->get<bool>();
}

std::string text(const json& object, const std::string& where, const char* name, const std::string& otherwise) {
  const json* found = find_field(object, where, name);
  if (found == nullptr) return otherwise;
  CADRE_CHECK(found->is_string(), fmt::format("{} is {}, allowed: a string", path(where, name), found->type_name()));
  return found->get<std::string>();
}

std::string type_of(const json& object, const std::string& where) {
  return object.is_null() ? "" : text(object, where, "type", "");
}

int32_t token_id(const json& value, const std::string& where) {
  const bool is_positive = value.is_number_unsigned() || (value.is_number_integer() && value.get<int64_t>() >= 0);
  const bool fits = is_positive && value.get<uint64_t>() < std::numeric_limits<int32_t>::max();
  CADRE_CHECK(fits, fmt::format("{} is {}, allowed: an integer in [0, 2147483647)", where,
                                value.is_number() ? value.dump() : value.type_name()));
  return value.get<int32_t>();
}

std::string quoted(const std::string& text) {
  return fmt::format("\"{}\"{}", text.substr(0, kQuotedBytes), text.size() > kQuotedBytes ? "..." : "");
}

}  // namespace cadre
