// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <memory>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr uint32_t kMaxSteps = 1'000'000;  // of one match
constexpr uint32_t kMaxHeapKiB = 64 << 10;

std::string text_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// Never freed: it does not change, and belongs to the process.
pcre2_match_context* limits() {
  static pcre2_match_context* const context = [] {
    pcre2_match_context* made = pcre2_match_context_create(nullptr);
    pcre2_set_match_limit(made, kMaxSteps);
    pcre2_set_heap_limit(made, kMaxHeapKiB);
    return made;
  }();
  return context;
}

bool starts_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

}  // namespace

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

Regex::Regex(std::string pattern, Kind kind) : pattern_(std::move(pattern)) {
  CADRE_CHECK(pattern_.size() <= kMaxPatternBytes,
              fmt::format("a regular expression of {} bytes, allowed: at most {}", pattern_.size(), kMaxPatternBytes));
  const uint32_t options =
      PCRE2_UTF | PCRE2_MATCH_INVALID_UTF |
      (kind == Kind::literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
  int error = 0;
  size_t at = 0;
  code_.reset(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_.data()), pattern_.size(), options, &error, &at, nullptr));
  CADRE_CHECK(code_, fmt::format("the regular expression {} is wrong at byte {}: {}", pattern_, at, text_of(error)));
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot be had, matches are slower and the same
}

void RegexMatches::FreeData::operator()(pcre2_real_match_data_8* data) const { pcre2_match_data_free(data); }

RegexMatches::RegexMatches(const Regex& regex, std::string_view text)
    : regex_(regex), text_(text), data_(pcre2_match_data_create(1, nullptr)) {}

std::optional<RegexMatches::Range> RegexMatches::next() {
  if (from_ > text_.size()) return std::nullopt;
  const int result = pcre2_match(regex_.code_.get(), reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from_, 0,
                                 data_.get(), limits());
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  CADRE_CHECK(result >= 0,
              fmt::format("the regular expression {} does not come to an end at byte {} of a text: {}",
                          regex_.pattern(), from_, text_of(result)),
              "it is not fit for text of this kind");
  const size_t* ends = pcre2_get_ovector_pointer(data_.get());
  const Range range = {ends[0], ends[1]};
  // \K in a look-ahead can put the beginning behind the end.
  CADRE_CHECK(range.begin >= from_ && range.begin <= range.end,
              fmt::format("the regular expression {} goes backwards at byte {} of a text", regex_.pattern(), from_));
  from_ = range.end;
  if (range.begin == range.end) {
    do ++from_;
    while (from_ < text_.size() && !starts_character(text_[from_]));
  }
  return range;
}

}  // namespace cadre
