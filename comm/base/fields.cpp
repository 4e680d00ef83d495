// SPDX-License-Identifier: Apache-2.0
#include "comm/base/fields.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {

// One row of the table is kept.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replace = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replace, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

namespace {

bool number_allowed(const Allowed& allowed, double number) {
  const bool above = allowed.min_excluded ? number > allowed.min : number >= allowed.min;
  const bool below = allowed.max_excluded ? number < allowed.max : number <= allowed.max;
  return std::isfinite(number) && above && below;
}

bool text_allowed(const Allowed& allowed, const std::string& text) {
  return allowed.choices.empty() || std::ranges::find(allowed.choices, text) != allowed.choices.end();
}

std::string range_text(const Allowed& allowed) {
  const bool has_min = std::isfinite(allowed.min);
  const bool has_max = std::isfinite(allowed.max);
  if (has_min && has_max)
    return fmt::format(" in [{}, {}{}", allowed.min, allowed.max, allowed.max_excluded ? ')' : ']');
  if (has_min) return fmt::format(" {} {}", allowed.min_excluded ? ">" : ">=", allowed.min);
  return "";
}

[[noreturn]] void refuse(const Field& field, const std::string& value, const std::string& prefix) {
  throw Error(ErrorKind::input, fmt::format("{}{} = {}, allowed: {}", prefix, field.name, value, allowed_text(field)),
              field.help);
}

// The value as the type of the member, if it is one and is in range.
std::optional<FieldValue> accept(const Field& field, const FieldValue& value) {
  if (std::holds_alternative<bool*>(field.member)) {
    if (std::holds_alternative<bool>(value)) return value;
  } else if (std::holds_alternative<int64_t*>(field.member)) {
    const auto* integer = std::get_if<int64_t>(&value);
    if (integer && number_allowed(field.allowed, static_cast<double>(*integer))) return value;
  } else if (std::holds_alternative<double*>(field.member)) {
    const auto* integer = std::get_if<int64_t>(&value);
    const auto* real = std::get_if<double>(&value);
    if (!integer && !real) return std::nullopt;
    const double number = integer ? static_cast<double>(*integer) : *real;
    if (number_allowed(field.allowed, number)) return number;
  } else {
    const auto* text = std::get_if<std::string>(&value);
    if (text && text_allowed(field.allowed, *text)) return value;
  }
  return std::nullopt;
}

template <class Number>
std::optional<FieldValue> number_of(const std::string& text) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return number;
}

std::optional<FieldValue> parse(const Field& field, const std::string& text) {
  if (std::holds_alternative<int64_t*>(field.member)) return number_of<int64_t>(text);
  if (std::holds_alternative<double*>(field.member)) return number_of<double>(text);
  if (std::holds_alternative<std::string*>(field.member)) return text;
  if (text == "true" || text == "false") return text == "true";
  return std::nullopt;
}

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

}  // namespace

Allowed any() { return {}; }
Allowed at_least(double min) { return {.min = min}; }
Allowed more_than(double min) { return {.min = min, .min_excluded = true}; }
Allowed between(double min, double max) { return {.min = min, .max = max}; }
Allowed from_below(double min, double max) { return {.min = min, .max = max, .max_excluded = true}; }
Allowed one_of(std::vector<std::string> choices) { return {.choices = std::move(choices)}; }

FieldValue value_of(const Field& field) {
  return std::visit([](const auto* member) { return FieldValue(*member); }, field.member);
}

std::string allowed_text(const Field& field) {
  if (std::holds_alternative<bool*>(field.member)) return "true | false";
  if (std::holds_alternative<int64_t*>(field.member)) return "integer" + range_text(field.allowed);
  if (std::holds_alternative<double*>(field.member)) return "number" + range_text(field.allowed);
  if (field.allowed.choices.empty()) return "text";
  return fmt::format("{}", fmt::join(field.allowed.choices, " | "));
}

std::string value_text(const FieldValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return fmt::format("\"{}\"", *text);
  return std::visit([](const auto& number) { return fmt::format("{}", number); }, value);
}

void assign(const Field& field, const FieldValue& value, const std::string& prefix) {
  const auto accepted = accept(field, value);
  if (!accepted) refuse(field, value_text(value), prefix);
  std::visit([&](auto* member) { *member = std::get<std::remove_pointer_t<decltype(member)>>(*accepted); },
             field.member);
}

void assign_text(const Field& field, const std::string& text, const std::string& prefix) {
  const auto value = parse(field, text);
  if (!value) refuse(field, text, prefix);
  assign(field, *value, prefix);
}

void check_ranges(std::span<const Field> fields, const std::string& prefix) {
  for (const Field& field : fields) {
    if (!accept(field, value_of(field))) refuse(field, value_text(value_of(field)), prefix);
  }
}

std::string nearest_name_hint(std::string_view name, std::span<const std::string> known) {
  const auto distance = [&](const std::string& candidate) {
    return std::min(edit_distance(name, candidate), edit_distance(last_part(name), last_part(candidate)));
  };
  const auto nearest = std::ranges::min_element(known, {}, distance);
  if (nearest == known.end()) return "";
  return fmt::format("the nearest known name is {}", *nearest);
}

}  // namespace cadre
