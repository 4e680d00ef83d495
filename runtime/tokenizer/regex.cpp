// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/regex.hpp"

#include <fmt/format.h>
#include <oniguruma.h>

#include <algorithm>
#include <array>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace cadre {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr unsigned long kMinSteps = 10'000'000;  // of one search, as many as tokenizers allows
constexpr unsigned long kStepsPerByte = 64;

const UChar* bytes_at(std::string_view text, size_t at) { return reinterpret_cast<const UChar*>(text.data()) + at; }

std::string error_text(int error, OnigErrorInfo* info) {
  std::array<UChar, ONIG_MAX_ERROR_MESSAGE_LEN> text{};
  const int length =
      info == nullptr ? onig_error_code_to_str(text.data(), error) : onig_error_code_to_str(text.data(), error, info);
  return {reinterpret_cast<const char*>(text.data()), static_cast<size_t>(length)};
}

void initialize_once() {
  static const int result = [] {
    std::array<OnigEncoding, 1> encodings = {ONIG_ENCODING_UTF8};
    return onig_initialize(encodings.data(), 1);
  }();
  CADRE_CHECK(result == ONIG_NORMAL, fmt::format("Oniguruma cannot start: {}", error_text(result, nullptr)));
}

std::string escaped_literal(std::string_view literal) {
  std::string pattern;
  for (const char byte : literal) {
    if (std::string_view(R"(\^$.|?*+()[]{})").find(byte) != std::string_view::npos) pattern += '\\';
    pattern += byte;
  }
  return pattern;
}

// From Oniguruma 6.9.9 on, as `tokenizers` has it, [:punct:] is \p{P} and \p{S}, and \p{Word} is \w; 6.9.8 leaves most
// symbols out of the one, and ² ³ ¹ ¼ ½ ¾ out of the other.
std::string as_newer_versions_read(std::string_view pattern) {
  std::string code;
  int depth = 0;  // of character classes
  const auto take = [&](size_t count) {
    code += pattern.substr(0, count);
    pattern.remove_prefix(std::min(count, pattern.size()));
  };
  while (!pattern.empty()) {
    if (pattern.starts_with(R"(\p{Word})") || pattern.starts_with(R"(\P{Word})")) {
      code += pattern[1] == 'p' ? R"(\w)" : R"(\W)";
      pattern.remove_prefix(pattern.find('}') + 1);
    } else if (pattern.front() == '\\') {
      take(2);
    } else if (depth > 0 && (pattern.starts_with("[:punct:]") || pattern.starts_with("[:^punct:]"))) {
      code += pattern[2] == '^' ? R"([^\p{P}\p{S}])" : R"([\p{P}\p{S}])";
      pattern.remove_prefix(pattern.find(']') + 1);
    } else if (depth > 0 && pattern.starts_with("[:") && pattern.find(":]") != std::string_view::npos) {
      take(pattern.find(":]") + 2);
    } else if (pattern.front() == '[') {
      ++depth;
      take(pattern.starts_with("[^") ? 2 : 1);
      if (pattern.starts_with("]")) take(1);
    } else {
      if (pattern.front() == ']' && depth > 0) --depth;
      take(1);
    }
  }
  return code;
}

}  // namespace

void Regex::FreeCode::operator()(re_pattern_buffer* code) const { onig_free(code); }

Regex::Regex(std::string pattern, Kind kind) : pattern_(std::move(pattern)) {
  CADRE_CHECK(pattern_.size() <= kMaxPatternBytes,
              fmt::format("a regular expression of {} bytes, allowed: at most {}", pattern_.size(), kMaxPatternBytes));
  CADRE_CHECK(utf8_length(pattern_) == pattern_.size(), "a regular expression is not UTF-8");
  initialize_once();
  const std::string code = kind == Kind::literal ? escaped_literal(pattern_) : as_newer_versions_read(pattern_);
  regex_t* made = nullptr;
  OnigErrorInfo info = {};
  const int result = onig_new(&made, bytes_at(code, 0), bytes_at(code, code.size()), ONIG_OPTION_NONE,
                              ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &info);
  code_.reset(made);
  CADRE_CHECK(result == ONIG_NORMAL,
              fmt::format("the regular expression {} is wrong: {}", pattern_, error_text(result, &info)));
}

void RegexMatches::FreeRegion::operator()(re_registers* region) const { onig_region_free(region, 1); }
void RegexMatches::FreeLimits::operator()(OnigMatchParamStruct* limits) const { onig_free_match_param(limits); }

RegexMatches::RegexMatches(const Regex& regex, std::string_view text)
    : regex_(regex), text_(text), region_(onig_region_new()), limits_(onig_new_match_param()) {
  CADRE_CHECK(region_ && limits_, "no memory for the matches of a regular expression");
  const unsigned long steps = std::max(kMinSteps, kStepsPerByte * text.size());
  onig_initialize_match_param(limits_.get());
  onig_set_retry_limit_in_match_of_match_param(limits_.get(), steps);
  onig_set_retry_limit_in_search_of_match_param(limits_.get(), steps);
  part_end_ = utf8_length(text_);
}

bool RegexMatches::enter_next_part() {
  if (part_end_ >= text_.size()) return false;
  from_ = part_begin_ = part_end_ + 1;
  while (part_begin_ < text_.size() && utf8_length(text_.substr(part_begin_, 4)) == 0) from_ = ++part_begin_;
  part_end_ = part_begin_ + utf8_length(text_.substr(part_begin_));
  last_end_.reset();
  return part_begin_ < part_end_;
}

std::optional<RegexMatches::Range> RegexMatches::search() {
  if (from_ > part_end_) return std::nullopt;
  onig_region_clear(region_.get());
  const UChar* end = bytes_at(text_, part_end_);
  const int result =
      onig_search_with_param(regex_.code_.get(), bytes_at(text_, part_begin_), end, bytes_at(text_, from_), end,
                             region_.get(), ONIG_OPTION_NONE, limits_.get());
  if (result == ONIG_MISMATCH) return std::nullopt;
  CADRE_CHECK(result >= 0,
              fmt::format("the regular expression {} does not come to an end at byte {} of a text: {}",
                          regex_.pattern(), from_, error_text(result, nullptr)),
              "it is not fit for text of this kind");
  return Range{part_begin_ + static_cast<size_t>(region_->beg[0]), part_begin_ + static_cast<size_t>(region_->end[0])};
}

std::optional<RegexMatches::Range> RegexMatches::next() {
  while (true) {
    const auto range = search();
    if (!range) {
      if (!enter_next_part()) return std::nullopt;
      continue;
    }
    // \K in a look-ahead can put the beginning behind the end.
    CADRE_CHECK(range->begin >= from_ && range->begin <= range->end,
                fmt::format("the regular expression {} goes backwards at byte {} of a text", regex_.pattern(), from_));
    if (range->begin == range->end && last_end_ == range->end) {
      do ++from_;
      while (from_ < part_end_ && is_utf8_continuation(text_[from_]));
      continue;
    }
    from_ = range->end;
    last_end_ = range->end;
    return range;
  }
}

}  // namespace cadre
