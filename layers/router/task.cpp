// SPDX-License-Identifier: Apache-2.0
#include "layers/router/task.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr std::array<std::string_view, kNumTaskTypes> kTaskNames = {"REASONING", "CODING", "MATH", "GENERAL",
                                                                    "MULTIMODAL"};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return (lower(c) >= 'a' && lower(c) <= 'z') || is_digit(c) || c == '_'; }

std::string lowered(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), lower);
  return result;
}

// A match in a text that may go on: bytes [at, end). An open one ends the text and may yet turn out to be part of a word.
struct Place {
  size_t at = 0;
  size_t end = 0;
  bool is_open = false;
};

// The match at [at, end), unless more of the word stands behind it.
std::optional<Place> whole_word(const std::string& text, size_t at, size_t end) {
  const bool ends_in_word = is_word(text[end - 1]);
  if (ends_in_word && end < text.size() && is_word(text[end])) return std::nullopt;
  return Place{at, end, ends_in_word && end == text.size()};
}

// The first place of the keyword at or behind `from`. The first byte of a UTF-8 character never occurs inside another, so
// that a search for bytes finds whole characters.
std::optional<Place> find_keyword(const std::string& text, const std::string& keyword, size_t from) {
  for (size_t at = text.find(keyword, from); at != std::string::npos; at = text.find(keyword, at + 1)) {
    if (at > 0 && is_word(keyword.front()) && is_word(text[at - 1])) continue;
    if (const auto place = whole_word(text, at, at + keyword.size())) return place;
  }
  return std::nullopt;
}

std::optional<Place> find_code_fence(const std::string& text, size_t from) {
  const size_t at = text.find("```", from);
  return at == std::string::npos ? std::nullopt : std::optional(Place{at, at + 3});
}

// A number, one of - * / ^ with or without blanks, and another number: "12 / 4".
std::optional<Place> find_arithmetic(const std::string& text, size_t from) {
  for (size_t at = text.find_first_of("-*/^", from); at != std::string::npos; at = text.find_first_of("-*/^", at + 1)) {
    const size_t before = text.find_last_not_of(' ', at == 0 ? std::string::npos : at - 1);
    const size_t after = text.find_first_not_of(' ', at + 1);
    if (at > 0 && before != std::string::npos && after != std::string::npos && is_digit(text[before]) &&
        is_digit(text[after])) {
      return Place{at, after + 1};
    }
  }
  return std::nullopt;
}

std::optional<Place> find_media_file(const std::string& text, size_t from) {
  for (const char* ending : {".png", ".jpg", ".jpeg", ".gif", ".mp4", ".mp3", ".wav"}) {
    const std::string_view suffix = ending;
    for (size_t at = text.find(suffix, from); at != std::string::npos; at = text.find(suffix, at + 1)) {
      if (at == 0 || text[at - 1] == ' ') continue;
      if (const auto place = whole_word(text, at, at + suffix.size())) return place;
    }
  }
  return std::nullopt;
}

struct Pattern {
  TaskType type;
  const char* name;
  std::optional<Place> (*find)(const std::string&, size_t from);
};
constexpr size_t kLongestPattern = 5;  // bytes, but for the blanks and signs of arithmetic
constexpr std::array<Pattern, 3> kPatterns = {{{TaskType::coding, "code fence", find_code_fence},
                                               {TaskType::math, "arithmetic", find_arithmetic},
                                               {TaskType::multimodal, "media file", find_media_file}}};

std::vector<TaskMatch> matches_of(TaskType type, const std::string& text, const TaskOptions& options) {
  std::vector<TaskMatch> matches;
  for (const std::string& keyword : options.keywords[static_cast<size_t>(type)]) {
    if (const auto place = find_keyword(text, lowered(keyword), 0)) matches.push_back({type, keyword, place->at});
  }
  for (const Pattern& pattern : kPatterns) {
    if (pattern.type != type) continue;
    if (const auto place = pattern.find(text, 0)) matches.push_back({type, pattern.name, place->at});
  }
  std::ranges::stable_sort(matches, {}, &TaskMatch::at);
  return matches;
}

}  // namespace

std::string_view name_of(TaskType type) { return kTaskNames[static_cast<size_t>(type)]; }

TaskType task_type_named(std::string_view name, std::string_view where) {
  const auto found =
      std::ranges::find_if(kTaskNames, [&](std::string_view known) { return lowered(known) == lowered(name); });
  CADRE_CHECK(found != kTaskNames.end(),
              fmt::format("{}: unknown task \"{}\", allowed: {}", where, name, fmt::join(kTaskNames, " | ")),
              "a list of these with commas");
  return static_cast<TaskType>(found - kTaskNames.begin());
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

TaskReader::TaskReader(TaskOptions options) : options_(std::move(options)), margin_(kLongestPattern) {
  for (std::vector<std::string>& keywords : options_.keywords) {
    for (std::string& keyword : keywords) {
      keyword = lowered(keyword);
      margin_ = std::max(margin_, keyword.size());
    }
  }
}

void TaskReader::restart() {
  text_.clear();
  settled_.fill(false);
}

std::optional<TaskType> TaskReader::read(std::string_view piece) {
  const size_t known = text_.size();
  text_ += lowered(piece);
  for (const TaskType type : options_.priority) {
    if (settled_[static_cast<size_t>(type)] || matches(type, known)) return type;
  }
  return std::nullopt;
}

// Whether the type has a match, which none of the first `known` bytes had for good.
bool TaskReader::matches(TaskType type, size_t known) {
  const size_t from = known - std::min(known, margin_);
  bool is_open = false;
  const auto settles = [&](const std::optional<Place>& place) {
    if (place && place->is_open) is_open = true;
    return place && !place->is_open;
  };
  bool& settled = settled_[static_cast<size_t>(type)];
  for (const std::string& keyword : options_.keywords[static_cast<size_t>(type)]) {
    settled = settled || settles(find_keyword(text_, keyword, from));
  }
  for (const Pattern& pattern : kPatterns) {
    if (settled || pattern.type != type) continue;
    // What arithmetic needs begins with the last byte that is neither sign nor blank.
    const size_t number = known == 0 ? std::string::npos : text_.find_last_not_of(" -*/^", known - 1);
    settled = settles(pattern.find(text_, std::min(from, number == std::string::npos ? 0 : number)));
  }
  return settled || is_open;
}

}  // namespace cadre
