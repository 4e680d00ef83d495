// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/task.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr std::array<std::string_view, kNumTaskTypes> kNames = {"REASONING", "CODING", "MATH", "GENERAL", "MULTIMODAL"};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return (lower(c) >= 'a' && lower(c) <= 'z') || is_digit(c) || c == '_'; }

std::string lowered(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), lower);
  return result;
}

// Where the keyword stands first. The first byte of a UTF-8 character never occurs inside another, so that a search for
// bytes finds whole characters.
std::optional<size_t> find_keyword(const std::string& text, const std::string& keyword) {
  for (size_t at = text.find(keyword); at != std::string::npos; at = text.find(keyword, at + 1)) {
    const size_t end = at + keyword.size();
    const bool cut_in_front = at > 0 && is_word(keyword.front()) && is_word(text[at - 1]);
    const bool cut_behind = end < text.size() && is_word(keyword.back()) && is_word(text[end]);
    if (!cut_in_front && !cut_behind) return at;
  }
  return std::nullopt;
}

std::optional<size_t> find_code_fence(const std::string& text) {
  const size_t at = text.find("```");
  return at == std::string::npos ? std::nullopt : std::optional(at);
}

// A number, one of - * / ^ with or without blanks, and another number: "12 / 4".
std::optional<size_t> find_arithmetic(const std::string& text) {
  for (size_t at = text.find_first_of("-*/^"); at != std::string::npos; at = text.find_first_of("-*/^", at + 1)) {
    const size_t before = text.find_last_not_of(' ', at == 0 ? std::string::npos : at - 1);
    const size_t after = text.find_first_not_of(' ', at + 1);
    if (at > 0 && before != std::string::npos && after != std::string::npos && is_digit(text[before]) &&
        is_digit(text[after])) {
      return at;
    }
  }
  return std::nullopt;
}

std::optional<size_t> find_media_file(const std::string& text) {
  for (const char* ending : {".png", ".jpg", ".jpeg", ".gif", ".mp4", ".mp3", ".wav"}) {
    const std::string_view suffix = ending;
    const size_t at = text.find(suffix);
    const size_t end = at + suffix.size();
    if (at != std::string::npos && at > 0 && text[at - 1] != ' ' && (end == text.size() || !is_word(text[end]))) {
      return at;
    }
  }
  return std::nullopt;
}

struct Pattern {
  TaskType type;
  const char* name;
  std::optional<size_t> (*find)(const std::string&);
};
constexpr std::array<Pattern, 3> kPatterns = {{{TaskType::coding, "code fence", find_code_fence},
                                               {TaskType::math, "arithmetic", find_arithmetic},
                                               {TaskType::multimodal, "media file", find_media_file}}};

std::vector<TaskMatch> matches_of(TaskType type, const std::string& text, const TaskOptions& options) {
  std::vector<TaskMatch> matches;
  for (const std::string& keyword : options.keywords[static_cast<size_t>(type)]) {
    if (const auto at = find_keyword(text, lowered(keyword))) matches.push_back({type, keyword, *at});
  }
  for (const Pattern& pattern : kPatterns) {
    if (pattern.type != type) continue;
    if (const auto at = pattern.find(text)) matches.push_back({type, pattern.name, *at});
  }
  std::ranges::stable_sort(matches, {}, &TaskMatch::at);
  return matches;
}

}  // namespace

std::string_view name_of(TaskType type) { return kNames[static_cast<size_t>(type)]; }

TaskType task_type_named(std::string_view name, std::string_view where) {
  const auto found =
      std::ranges::find_if(kNames, [&](std::string_view known) { return lowered(known) == lowered(name); });
  CADRE_CHECK(found != kNames.end(),
              fmt::format("{}: unknown task \"{}\", allowed: {}", where, name, fmt::join(kNames, " | ")),
              "a list of these with commas");
  return static_cast<TaskType>(found - kNames.begin());
}

std::vector<std::string> words_of(std::string_view list) {
  constexpr std::string_view kBlanks = " \t\r\n";
  std::vector<std::string> words;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    const std::string_view word = list.substr(0, comma);
    const size_t first = word.find_first_not_of(kBlanks);
    if (first != std::string_view::npos) {
      words.emplace_back(word.substr(first, word.find_last_not_of(kBlanks) - first + 1));
    }
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return words;
}

RecognisedTask recognise_task(std::string_view text, const TaskOptions& options) {
  const std::string prepared = lowered(text);
  RecognisedTask recognised;
  for (const TaskType type : options.priority) {
    const std::vector<TaskMatch> matches = matches_of(type, prepared, options);
    if (recognised.matches.empty() && !matches.empty()) recognised.type = type;
    recognised.matches.insert(recognised.matches.end(), matches.begin(), matches.end());
  }
  return recognised;
}

}  // namespace cadre
