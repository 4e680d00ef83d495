// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/json_lines.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <fstream>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

constexpr const char* kJsonLinesHint =
    R"(a line is an object such as {"text": "..."}; data.text_field names the field)";

}  // namespace

bool is_json_lines(const std::filesystem::path& path) {
  const std::string extension = path.extension();
  return extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
}

std::string text_of_json_line(std::string_view line, const std::string& field, const std::string& where) {
  auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  CADRE_CHECK(object.is_object(), fmt::format("{}: not a JSON object in UTF-8", where), kJsonLinesHint);
  const auto found = object.find(field);
  CADRE_CHECK(found != object.end() && found->is_string(),
              fmt::format("{}: {} is {}, allowed: a string", where, field,
                          found == object.end() ? "missing" : "a JSON " + std::string(found->type_name())),
              kJsonLinesHint);
  return std::move(found->get_ref<std::string&>());
}

Documents read_json_lines(const std::string& path, const std::string& field, std::string_view separator) {
  expect_regular_file(path, kJsonLinesHint);
  std::ifstream file(path, std::ios::binary);
  Documents documents;
  documents.separator_bytes = separator.size();
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string text = text_of_json_line(line, field, fmt::format("{}: line {}", path, number));
    if (text.empty()) continue;
    if (documents.size() > 0) documents.text += separator;
    documents.begin.push_back(documents.text.size());
    documents.text += text;
  }
  CADRE_CHECK(file.eof() && !file.bad(), fmt::format("{}: cannot be read", path), kJsonLinesHint);
  CADRE_CHECK(documents.size() > 0, fmt::format("{}: no text in it", path), kJsonLinesHint);
  return documents;
}

}  // namespace cadre
