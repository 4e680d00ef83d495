// SPDX-License-Identifier: Apache-2.0
#include "layers/model/config_reader.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/fields.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr size_t kMaxShown = 120;  // bytes
constexpr size_t kMaxItems = 16;
constexpr size_t kLettersForOneWrong = 6;  // a key with one wrong letter in so many is misspelt

FieldValue value_of_json(const json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number()) return value.get<double>();
  return value.get<std::string>();
}

std::string cut(std::string text) { return text.size() <= kMaxShown ? text : text.substr(0, kMaxShown) + "..."; }

// A key as a note shows it: control characters as JSON has them.
std::string plain(const std::string& key) {
  const std::string quoted = shown(key);
  return quoted.substr(1, quoted.size() - 2);
}

// Hugging Face's other names of the same functions.
std::string activation_of(const std::string& name) {
  if (name == "swish") return "silu";
  return name;
}

bool is_off(const json& value) {
  return value.is_null() || value == false || (value.is_string() && value.get_ref<const std::string&>().empty()) ||
         (value.is_structured() && value.empty());
}

}  // namespace

std::string shown(const json& value) {
  const auto is_flat = [](const json& items) {
    return items.size() <= kMaxItems &&
           std::ranges::none_of(items, [](const json& item) { return item.is_structured(); });
  };
  if (value.is_structured() && !is_flat(value)) return value.is_array() ? "a list" : "an object";
  return cut(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

ConfigReader::ConfigReader(ModelConfig& config, std::string where, std::vector<std::string>* unused)
    : config_(config), fields_(fields_of(config)), where_(std::move(where)), unused_(unused) {}

bool ConfigReader::has_field(const std::string& key) const {
  return std::ranges::find(fields_, key, &Field::name) != fields_.end();
}

void ConfigReader::note_unused(const std::string& text) {
  if (unused_ != nullptr) unused_->push_back(text);
}

void ConfigReader::refuse(const std::string& key, const json& value, const std::string& allowed,
                          const std::string& hint) const {
  throw Error(ErrorKind::input, fmt::format("{}: {} = {}, allowed: {}", where_, key, shown(value), allowed), hint);
}

void ConfigReader::read(const std::string& key, const json& value) {
  const auto field = std::ranges::find(fields_, key, &Field::name);
  CADRE_ASSERT(field != fields_.end());
  if (value.is_null()) {
    ModelConfig none;
    const std::vector<Field> fields = fields_of(none);
    return assign(*field, value_of(*std::ranges::find(fields, key, &Field::name)), where_ + ": ");
  }
  const bool is_long = value.is_string() && value.get_ref<const std::string&>().size() > kMaxShown;
  if (value.is_structured() || is_long) refuse(key, value, allowed_text(*field), field->help);
  if (key == "clip_qkv" && value == 0) refuse(key, value, "null or a number > 0", field->help);
  if (key == "hidden_act" && value.is_string()) return assign(*field, activation_of(value), where_ + ": ");
  assign(*field, value_of_json(value), where_ + ": ");
}

void ConfigReader::read_unknown(const std::string& key, const json& value) {
  std::vector<std::string> known;
  for (const Field& field : fields_) known.push_back(field.name);
  const std::string name = plain(key);
  const bool is_misspelt = std::ranges::any_of(
      known, [&](const std::string& right) { return edit_distance(name, right) <= name.size() / kLettersForOneWrong; });
  if (is_off(value) && !is_misspelt) return note_unused(name);
  constexpr const char* kDelete = "delete a key that does not change the model";
  const std::string nearest = nearest_name_hint(name, known);
  throw Error(ErrorKind::input, fmt::format("{}: unknown key {} = {}", where_, name, shown(value)),
              nearest.empty() ? kDelete : fmt::format("{}; {}", nearest, kDelete));
}

}  // namespace cadre
