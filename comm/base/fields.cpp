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

// Each sets the member if the value is of its type and in range.
bool set(bool* member, const Allowed& /*allowed*/, const FieldValue& value) {
  const auto* flag = std::get_if<bool>(&value);
  if (flag != nullptr) *member = *flag;
  return flag != nullptr;
}

template <class Integer>
bool set_integer(Integer* member, const Allowed& allowed, const FieldValue& value) {
  const auto* integer = std::get_if<int64_t>(&value);
  if (integer == nullptr || !std::in_range<Integer>(*integer)) return false;
  if (!number_allowed(allowed, static_cast<double>(*integer))) return false;
  *member = static_cast<Integer>(*integer);
  return true;
}
bool set(int* member, const Allowed& allowed, const FieldValue& value) { return set_integer(member, allowed, value); }
bool set(int64_t* member, const Allowed& allowed, const FieldValue& value) {
  return set_integer(member, allowed, value);
}

bool set(double* member, const Allowed& allowed, const FieldValue& value) {
  const auto* integer = std::get_if<int64_t>(&value);
  const auto* real = std::get_if<double>(&value);
  if (integer == nullptr && real == nullptr) return false;
  const double number = integer != nullptr ? static_cast<double>(*integer) : *real;
  if (!number_allowed(allowed, number)) return false;
  *member = number;
  return true;
}

bool set(std::string* member, const Allowed& allowed, const FieldValue& value) {
  const auto* text = std::get_if<std::string>(&value);
  if (text == nullptr || !text_allowed(allowed, *text)) return false;
  *member = *text;
  return true;
}

bool set(const TextMember& member, const Allowed& /*allowed*/, const FieldValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return member.set(fmt::format("{}", *number));
  const auto* text = std::get_if<std::string>(&value);
  return text != nullptr && member.set(*text);
}

bool set(const Field& field, const FieldValue& value) {
  return std::visit([&](const auto& member) { return set(member, field.allowed, value); }, field.member);
}

bool is_integer(const Field& field) {
  return std::holds_alternative<int*>(field.member) || std::holds_alternative<int64_t*>(field.member);
}

template <class Number>
std::optional<Number> number_of(std::string_view text) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return number;
}

std::optional<FieldValue> parse(const Field& field, const std::string& text) {
  if (is_integer(field)) return number_of<int64_t>(text);
  if (std::holds_alternative<double*>(field.member)) return number_of<double>(text);
  if (!std::holds_alternative<bool*>(field.member)) return text;
  if (text == "true" || text == "false") return text == "true";
  return std::nullopt;
}

template <class Number>
std::optional<std::vector<Number>> list_in(const std::string& text, int64_t least, int64_t most) {
  std::vector<Number> numbers;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t comma = rest.find(',');
    const auto number = number_of<int64_t>(rest.substr(0, comma));
    if (!number || *number < least || *number > most) return std::nullopt;
    numbers.push_back(static_cast<Number>(*number));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return numbers;
}

template <class Number>
Field list_field(std::string name, std::vector<Number>& member, int64_t least, int64_t most, std::string help) {
  const TextMember text = {.text = [&member] { return fmt::format("{}", fmt::join(member, ",")); },
                           .set =
                               [&member, least, most](const std::string& given) {
                                 auto numbers = list_in<Number>(given, least, most);
                                 if (numbers) member = *std::move(numbers);
                                 return numbers.has_value();
                               }};
  return {std::move(name), text, {.form = list_form(least, most)}, std::move(help)};
}

template <class T>
FieldValue value_in(const T* member) {
  return *member;
}
FieldValue value_in(const int* member) { return int64_t{*member}; }
FieldValue value_in(const TextMember& member) { return member.text(); }

constexpr size_t kLettersForOneWrong = 3;
constexpr size_t kMostListed = 16;

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

}  // namespace

Allowed any() { return {}; }
Allowed at_least(double min) { return {.min = min}; }
Allowed more_than(double min) { return {.min = min, .min_excluded = true}; }
Allowed between(double min, double max) { return {.min = min, .max = max}; }
Allowed from_below(double min, double max) { return {.min = min, .max = max, .max_excluded = true}; }
Allowed one_of(std::vector<std::string> choices) { return {.choices = std::move(choices)}; }

Field list_of(std::string name, std::vector<int32_t>& member, int64_t least, int64_t most, std::string help) {
  return list_field(std::move(name), member, least, most, std::move(help));
}
Field list_of(std::string name, std::vector<int64_t>& member, int64_t least, int64_t most, std::string help) {
  return list_field(std::move(name), member, least, most, std::move(help));
}
std::string list_form(int64_t least, int64_t most) {
  return fmt::format("integers in [{}, {}], as 1,2,3", least, most);
}

FieldValue value_of(const Field& field) {
  return std::visit([](const auto& member) { return value_in(member); }, field.member);
}

std::string allowed_text(const Field& field) {
  if (std::holds_alternative<bool*>(field.member)) return "true | false";
  if (is_integer(field)) return "integer" + range_text(field.allowed);
  if (std::holds_alternative<double*>(field.member)) return "number" + range_text(field.allowed);
  if (field.allowed.choices.empty()) return field.allowed.form.empty() ? "text" : field.allowed.form;
  return fmt::format("{}", fmt::join(field.allowed.choices, " | "));
}

std::string value_text(const FieldValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return fmt::format("\"{}\"", *text);
  return std::visit([](const auto& number) { return fmt::format("{}", number); }, value);
}

void assign(const Field& field, const FieldValue& value, const std::string& prefix) {
  if (!set(field, value)) refuse(field, value_text(value), prefix);
}

void assign_text(const Field& field, const std::string& text, const std::string& prefix) {
  const auto value = parse(field, text);
  if (!value) refuse(field, text, prefix);
  assign(field, *value, prefix);
}

void check_ranges(std::span<const Field> fields, const std::string& prefix) {
  for (const Field& field : fields) {
    if (!set(field, value_of(field))) refuse(field, value_text(value_of(field)), prefix);
  }
}

const Field& field_named(std::span<const Field> fields, std::string_view name) {
  const auto found = std::ranges::find(fields, name, &Field::name);
  CADRE_ASSERT(found != fields.end());
  return *found;
}

std::string nearest_name_hint(std::string_view name, std::span<const std::string> known) {
  const auto distance = [&](const std::string& candidate) {
    return std::min(edit_distance(name, candidate), edit_distance(last_part(name), last_part(candidate)));
  };
  const auto nearest = std::ranges::min_element(known, {}, distance);
  if (nearest == known.end()) return "";
  const size_t length = std::min(name.size(), last_part(name).size());
  if (distance(*nearest) > std::max<size_t>(1, (length + 1) / kLettersForOneWrong)) {
    return known.size() <= kMostListed ? fmt::format("known names: {}", fmt::join(known, ", ")) : "";
  }
  return fmt::format("the nearest known name is {}", *nearest);
}

}  // namespace cadre
