// SPDX-License-Identifier: Apache-2.0
// A regular expression over UTF-8 with Unicode classes, by PCRE2, as tokenizer files mean it: `$` and `^` also match at
// the ends of lines. In text that is not UTF-8 the wrong bytes match nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace cadre {

class Regex {
 public:
  enum class Kind { pattern, literal };

  // Throws on a pattern that is wrong or too large.
  explicit Regex(std::string pattern, Kind kind = Kind::pattern);

  const std::string& pattern() const { return pattern_; }

 private:
  friend class RegexMatches;
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };

  std::string pattern_;
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

// The matches of an expression in a text, from left to right, none over another. Both must outlive it.
class RegexMatches {
 public:
  RegexMatches(const Regex& regex, std::string_view text);

  struct Range {
    size_t begin;
    size_t end;  // the same where nothing was needed to match
  };
  // Throws where a match would need more steps than a sane expression does.
  std::optional<Range> next();

 private:
  struct FreeData {
    void operator()(pcre2_real_match_data_8* data) const;
  };

  const Regex& regex_;
  std::string_view text_;
  std::unique_ptr<pcre2_real_match_data_8, FreeData> data_;
  size_t from_ = 0;
};

}  // namespace cadre
