// SPDX-License-Identifier: Apache-2.0
// A regular expression over UTF-8 by Oniguruma, the engine that the `tokenizers` package of Hugging Face has: expressions
// of tokenizer.json files mean the same here as there. Text that is not UTF-8 counts as several texts, between which
// the wrong bytes match nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct re_pattern_buffer;
struct re_registers;
struct OnigMatchParamStruct;

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
    void operator()(re_pattern_buffer* code) const;
  };

  std::string pattern_;
  std::unique_ptr<re_pattern_buffer, FreeCode> code_;
};

// The matches of an expression in a text, from left to right, none over another; an empty one only where the match
// before does not end. Both must outlive it.
class RegexMatches {
 public:
  RegexMatches(const Regex& regex, std::string_view text);

  struct Range {
    size_t begin;
    size_t end;  // the same where nothing was needed to match
  };
  // Throws where a match needs more steps than a few for each byte of the text.
  std::optional<Range> next();

 private:
  struct FreeRegion {
    void operator()(re_registers* region) const;
  };
  struct FreeLimits {
    void operator()(OnigMatchParamStruct* limits) const;
  };

  bool enter_next_part();
  std::optional<Range> search();

  const Regex& regex_;
  std::string_view text_;
  std::unique_ptr<re_registers, FreeRegion> region_;
  std::unique_ptr<OnigMatchParamStruct, FreeLimits> limits_;
  size_t part_begin_ = 0;  // of the part of the text that is UTF-8 and searched now
  size_t part_end_ = 0;
  size_t from_ = 0;
  std::optional<size_t> last_end_;  // of the match before, in this part
};

}  // namespace cadre
