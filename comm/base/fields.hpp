// SPDX-License-Identifier: Apache-2.0
// A table of the fields of a plain struct: name, member, what is allowed, what it means. One table serves every reader
// and writer of the struct (JSON, TOML, key=value, help, range checks), so none of them can disagree with another.
//
//   std::vector<Field> fields_of(Shape& shape) {
//     return {{"width", &shape.width, at_least(1), "columns"}, {"name", &shape.name, any(), "label of the plot"}};
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace cadre {

using FieldValue = std::variant<bool, int64_t, double, std::string>;

// What values a field takes. Numbers are always finite.
struct Allowed {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_excluded = false;
  bool max_excluded = false;
  std::vector<std::string> choices = {};  // of text; none: any text
  std::string form = {};                  // of text, in words: "integers in [0, 7], as 1,2,3"
};

Allowed any();
Allowed at_least(double min);
Allowed more_than(double min);
Allowed between(double min, double max);     // [min, max]
Allowed from_below(double min, double max);  // [min, max)
Allowed one_of(std::vector<std::string> choices);

// A member that files and messages show as text: an enumerator by its name, a list of numbers as 1,2,3.
struct TextMember {
  std::function<std::string()> text;
  std::function<bool(const std::string&)> set;  // false: not such a text, and the member keeps its value
};

struct Field {
  std::string name;
  std::variant<bool*, int*, int64_t*, double*, std::string*, TextMember> member;
  Allowed allowed;
  std::string help;
};

// One value of a member and its name.
template <class T>
struct Name {
  std::string text;
  T value;
};

// A member with a few values, each with a name: an enumeration, mostly.
template <class T>
Field named(std::string name, T& member, const std::vector<Name<T>>& names, std::string help) {
  Allowed allowed;
  for (const Name<T>& one : names) allowed.choices.push_back(one.text);
  const TextMember text = {.text =
                               [&member, names] {
                                 for (const Name<T>& one : names) {
                                   if (one.value == member) return one.text;
                                 }
                                 return std::string();
                               },
                           .set =
                               [&member, names](const std::string& given) {
                                 for (const Name<T>& one : names) {
                                   if (one.text != given) continue;
                                   member = one.value;
                                   return true;
                                 }
                                 return false;
                               }};
  return {std::move(name), text, std::move(allowed), std::move(help)};
}

// A list of integers in [least, most], as text with commas between them; empty text is an empty list.
Field list_of(std::string name, std::vector<int32_t>& member, int64_t least, int64_t most, std::string help);
Field list_of(std::string name, std::vector<int64_t>& member, int64_t least, int64_t most, std::string help);
std::string list_form(int64_t least, int64_t most);  // "integers in [0, 7], as 1,2,3"

FieldValue value_of(const Field& field);
std::string allowed_text(const Field& field);     // "integer >= 1", "number in [0, 1)", "silu | gelu | relu"
std::string value_text(const FieldValue& value);  // as JSON and TOML write it, without escapes

// Writes the member. A value of the wrong type or out of range is an error; an integer is also a number. `prefix`
// stands before the name in the message: "run.toml:12: train.".
void assign(const Field& field, const FieldValue& value, const std::string& prefix);
// The same from the text of a command line.
void assign_text(const Field& field, const std::string& text, const std::string& prefix);
// Checks the range of what the members hold now.
void check_ranges(std::span<const Field> fields, const std::string& prefix);
// The field of that name; an internal error when there is none.
const Field& field_named(std::span<const Field> fields, std::string_view name);

// A hint for an unknown name: the nearest of `known` (or of its part after the last dot), else all of few, else "".
std::string nearest_name_hint(std::string_view name, std::span<const std::string> known);

// How many letters must be replaced, added or taken away to make one text of the other (Levenshtein 1966).
size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace cadre
