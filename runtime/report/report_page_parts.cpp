// SPDX-License-Identifier: Apache-2.0
#include "runtime/report/report_page_parts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace cadre::page {
namespace {

constexpr const char* kAbsent = "–";

const char* suffix_of(Unit unit) {
  switch (unit) {
    case Unit::ms: return " ms";
    case Unit::us: return " µs";
    case Unit::percent: return " %";
    case Unit::gigabytes_per_second: return " GB/s";
    case Unit::factor: return " ×";
    case Unit::text:
    case Unit::count:
    case Unit::bytes:
    case Unit::ratio:
    case Unit::loss: break;
  }
  return "";
}

// Of numbers whose largest has this magnitude.
int decimals_of(double largest, Unit unit) {
  switch (unit) {
    case Unit::text:
    case Unit::count:
    case Unit::bytes: return 0;
    case Unit::percent: return 1;
    case Unit::ratio: return 2;
    case Unit::factor: return 3;
    case Unit::loss: return 4;
    case Unit::ms:
    case Unit::us:
    case Unit::gigabytes_per_second: break;
  }
  if (largest >= 1000) return 0;
  return largest >= 100 ? 1 : largest >= 10 ? 2 : largest >= 0.1 ? 3 : 4;
}

std::string bytes_text(double bytes) {
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  size_t i = 0;
  for (; std::abs(bytes) >= 999.5 && i + 1 < std::size(kPrefixes); ++i) bytes /= 1000;
  return fmt::format("{:.{}f} {}B", bytes, i == 0 || std::abs(bytes) >= 99.95 ? 0 : 1, kPrefixes[i]);
}

std::string digits(double value, Unit unit, int decimals) {
  if (unit == Unit::bytes) return bytes_text(value);
  return fmt::format("{:.{}f}", value == 0 ? 0.0 : value, decimals);
}

std::string cell(const Column& column, const Json& row, int decimals) {
  if (column.unit == Unit::text) return fmt::format("<td>{}</td>", escaped(text_at(row, column.key)));
  const std::optional<double> value = number_at(row, column.key);
  const std::string bar =
      column.bar && value ? fmt::format(" style=\"--share:{:.1f}%\"", std::clamp(*value, 0.0, 100.0)) : std::string();
  return fmt::format("<td class=\"number{}\"{}>{}</td>", column.bar ? " bar" : "", bar,
                     value ? digits(*value, column.unit, decimals) : kAbsent);
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      case '\'': result += "&#39;"; break;
      default: result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

std::string shortened(std::string_view text, size_t most) {
  size_t num_characters = 0;
  size_t cut = 0;  // where the character at `most` - 1 begins
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (num_characters + 1 == most) cut = i;
    ++num_characters;
  }
  return num_characters <= most ? std::string(text) : std::string(text.substr(0, cut)) + "…";
}

std::optional<double> number_at(const Json& object, const char* key) {
  if (!object.is_object()) return std::nullopt;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  const double value = found->get<double>();
  return std::isfinite(value) ? std::optional(value) : std::nullopt;
}

std::string text_at(const Json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return "";
  return found->is_string() ? found->get<std::string>() : found->dump(-1, ' ', false, Json::error_handler_t::replace);
}

const Json& array_at(const Json& object, const char* key) {
  static const Json kEmpty = Json::array();
  const Json& found = object_at(object, key);
  return found.is_array() ? found : kEmpty;
}

const Json& object_at(const Json& object, const char* key) {
  static const Json kNull;
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found == object.end() ? kNull : *found;
}

std::string figure(std::optional<double> value, Unit unit) {
  if (!value) return kAbsent;
  return digits(*value, unit, decimals_of(std::abs(*value), unit)) + suffix_of(unit);
}

std::string table(const char* label, std::span<const Column> columns, const Json& rows) {
  std::string text = fmt::format(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table aria-label=\"{0}\"><thead><tr>",
      label);
  std::vector<int> decimals;
  for (const Column& column : columns) {
    double largest = 0;
    for (const Json& row : rows) largest = std::max(largest, std::abs(number_at(row, column.key).value_or(0)));
    decimals.push_back(decimals_of(largest, column.unit));
    text += fmt::format("<th scope=\"col\"{}>{}<small>{}</small></th>",
                        column.unit == Unit::text ? "" : " class=\"number\"", column.title, suffix_of(column.unit));
  }
  text += "</tr></thead><tbody>\n";
  for (const Json& row : rows) {
    text += "<tr>";
    for (size_t i = 0; i < columns.size(); ++i) text += cell(columns[i], row, decimals[i]);
    text += "</tr>\n";
  }
  return text + "</tbody></table></div>\n";
}

std::string section(const char* id, const char* title, const std::string& body) {
  return fmt::format(
      "<section id=\"{0}\" aria-labelledby=\"{0}-title\">\n<h2 id=\"{0}-title\">{1}</h2>\n{2}</section>\n", id, title,
      body);
}

std::string note(const std::string& text) { return fmt::format("<p class=\"note\">{}</p>\n", text); }

std::vector<double> ticks(double most, int wanted) {
  const double step = std::max(most, 1e-9) / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(step)));
  double chosen = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= step * (1 - 1e-9)) chosen = factor * power;
  }
  std::vector<double> result;
  for (int i = 0; i * chosen <= most * (1 + 1e-9); ++i) result.push_back(i * chosen);
  return result;
}

std::string legend_entry(const std::string& classes, const std::string& label) {
  return fmt::format("<li><span class=\"swatch {}\"></span>{}</li>", classes, label);
}

}  // namespace cadre::page
