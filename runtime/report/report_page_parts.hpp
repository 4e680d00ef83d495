// SPDX-License-Identifier: Apache-2.0
// What the parts of a report page share: escaping, figures, tables, sections. Only report_page*.cpp include this.
#pragma once

#include <nlohmann/json.hpp>

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre::page {

using Json = nlohmann::json;

extern const char* const kStyle;   // CSS
extern const char* const kScript;  // JavaScript

// For text and for values of attributes.
std::string escaped(std::string_view text);

// At most `most` characters, the last of them an ellipsis where something was cut off. Takes UTF-8.
std::string shortened(std::string_view text, size_t most);

// Of `object`; none where it is absent, null, not a number or not finite.
std::optional<double> number_at(const Json& object, const char* key);
std::string text_at(const Json& object, const char* key);    // "" where absent
const Json& array_at(const Json& object, const char* key);   // [] where absent
const Json& object_at(const Json& object, const char* key);  // null where absent

enum class Unit { text, count, ms, us, percent, bytes, gigabytes_per_second, ratio, factor, loss };

// "36.50 ms"; "–" for none. Not for Unit::text.
std::string figure(std::optional<double> value, Unit unit);

struct Column {
  const char* key;
  const char* title;
  Unit unit;
  bool bar = false;  // drawn behind the number: percent of the cell's width
};

// One row for each element of `rows`; numbers of a column have the same decimals.
std::string table(const char* label, std::span<const Column> columns, const Json& rows);

std::string section(const char* id, const char* title, const std::string& body);
// For a section without data.
std::string note(const std::string& text);

// At 0 and at multiples of 1, 2 or 5 times a power of ten up to `most`, at least `wanted` / 2.5 of them.
std::vector<double> ticks(double most, int wanted);

std::string legend_entry(const std::string& classes, const std::string& label);

// The charts, each the body of its section.
std::string timeline(const std::vector<RankTrace>& traces);
std::string overlap_bars(const Json& report);
std::string bubble_bars(const Json& report);
std::string balance_lines(const Json& report);
std::string load_map(const Json& report);
std::string load_over_time(const Json& report);

}  // namespace cadre::page
