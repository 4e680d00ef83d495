// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/pre_tokenizer.hpp"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/json_fields.hpp"

namespace cadre {
namespace {

// Joins the parts of a text to words, as a SplitBehavior says.
class SplitParts {
 public:
  // `text` and `take` must outlive it.
  SplitParts(SplitBehavior behavior, std::string_view text, const PreTokenizer::TakeWord& take)
      : behavior_(behavior), text_(text), take_(take) {}

  // The next part, text[begin, end). Parts that match may be empty.
  void add(size_t begin, size_t end, bool is_match) {
    if (behavior_ == SplitBehavior::removed && is_match) return;
    if (!joins_last(is_match)) {
      finish();
      begin_ = begin;
    }
    end_ = end;
    has_last_ = true;
    last_is_match_ = is_match;
  }

  // Call it after the last part.
  void finish() {
    if (has_last_ && end_ > begin_) take_(text_.substr(begin_, end_ - begin_));
    has_last_ = false;
  }

 private:
  bool joins_last(bool is_match) const {
    if (!has_last_) return false;
    switch (behavior_) {
      case SplitBehavior::contiguous: return is_match == last_is_match_;
      case SplitBehavior::merged_with_previous: return is_match && !last_is_match_;
      case SplitBehavior::merged_with_next: return !is_match && last_is_match_;
      default: return false;
    }
  }

  SplitBehavior behavior_;
  std::string_view text_;
  const PreTokenizer::TakeWord& take_;
  bool has_last_ = false;  // a word that further parts may join
  bool last_is_match_ = false;
  size_t begin_ = 0;
  size_t end_ = 0;
};

using nlohmann::json;
using Behavior = SplitBehavior;

constexpr const char* kName = "pre_tokenizer";
constexpr const char* kPreTokenizerHint =
    "only byte-level tokenizers are read, in the style of GPT-2, Llama 3 and DeepSeek";
constexpr size_t kMaxSteps = 64;  // each is a level of calls

// What ByteLevel cuts at when it is not told otherwise: the words of GPT-2.
constexpr const char* kWords = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// The `tokenizers` package has all marks of ASCII for punctuation, and the class P of Unicode 8, to which two characters
// belonged that have left it; the list is of those that came later.
constexpr const char* kPunctuation =
    R"([[\p{P}\x{166D}\x{111C9}!-/:-@\[-`{-~]&&[^)"
    R"(\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B4E}-\x{1B4F}\x{1B7D}-\x{1B7F}\x{2E43}-\x{2E4F}\x{2E52}-\x{2E5D})"
    R"(\x{10D6E}\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}\x{113D4}-\x{113D5}\x{113D7}-\x{113D8})"
    R"(\x{1144B}-\x{1144F}\x{1145A}-\x{1145B}\x{1145D}\x{11660}-\x{1166C}\x{116B9}\x{1183B}\x{11944}-\x{11946})"
    R"(\x{119E2}\x{11A3F}-\x{11A46}\x{11A9A}-\x{11A9C}\x{11A9E}-\x{11AA2}\x{11B00}-\x{11B09}\x{11BE1})"
    R"(\x{11C41}-\x{11C45}\x{11C70}-\x{11C71}\x{11EF7}-\x{11EF8}\x{11F43}-\x{11F4F}\x{11FFF}\x{12FF1}-\x{12FF2})"
    R"(\x{16D6D}-\x{16D6F}\x{16E97}-\x{16E9A}\x{16FE2}\x{1E5FF}\x{1E95E}-\x{1E95F})"
    R"(]])";
constexpr const char* kSpaces = R"(\p{White_Space}+)";

Behavior behavior_of(const json& step, const char* otherwise) {
  const std::string name = text(step, kName, "behavior", otherwise);
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "Contiguous") return Behavior::contiguous;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  throw Error(ErrorKind::input,
              fmt::format("pre_tokenizer.behavior = {}, allowed: Removed | Isolated | Contiguous | "
                          "MergedWithPrevious | MergedWithNext",
                          quoted(name)),
              kPreTokenizerHint);
}

}  // namespace

PreTokenizer::PreTokenizer(const json& description) { add(description, /*is_last=*/true, 0); }

void PreTokenizer::add_sequence(const json& sequence, bool is_last, size_t depth) {
  const json& list = field(sequence, kName, "pretokenizers", json::value_t::array);
  CADRE_CHECK(!list.empty() && list.size() <= kMaxSteps && depth < kMaxSteps,
              fmt::format("pre_tokenizer.pretokenizers has {} steps, allowed: 1 to {}", list.size(), kMaxSteps),
              kPreTokenizerHint);
  for (size_t i = 0; i < list.size(); ++i) add(list[i], is_last && i + 1 == list.size(), depth + 1);
}

void PreTokenizer::add(const json& step, bool is_last, size_t depth) {
  const std::string type = type_of(step, kName);
  if (type == "Sequence") return add_sequence(step, is_last, depth);
  CADRE_CHECK((type == "ByteLevel") == is_last,
              fmt::format("pre_tokenizer: {} stands {}, allowed: ByteLevel at the end and nowhere else", quoted(type),
                          is_last ? "at the end" : "before the end"),
              kPreTokenizerHint);
  CADRE_CHECK(steps_.size() < kMaxSteps, fmt::format("pre_tokenizer has more than {} steps", kMaxSteps),
              kPreTokenizerHint);
  if (type == "ByteLevel") return add_byte_level(step);
  if (type == "Split") return add_split(step);
  if (type == "Digits") {
    const bool single = flag(step, kName, "individual_digits", false);
    steps_.push_back({Regex(R"(\p{N})"), single ? Behavior::isolated : Behavior::contiguous});
  } else if (type == "Punctuation") {
    steps_.push_back({Regex(kPunctuation), behavior_of(step, "Isolated")});
  } else if (type == "WhitespaceSplit") {
    steps_.push_back({Regex(kSpaces), Behavior::removed});
  } else if (type == "BertPreTokenizer") {
    steps_.push_back({Regex(kSpaces), Behavior::removed});
    steps_.push_back({Regex(kPunctuation), Behavior::isolated});
  } else if (type == "CharDelimiterSplit") {
    steps_.push_back({Regex(text(step, kName, "delimiter", ""), Regex::Kind::literal), Behavior::removed});
  } else {
    throw Error(ErrorKind::input,
                fmt::format("pre_tokenizer: {}, allowed: Split | Digits | Punctuation | WhitespaceSplit | "
                            "CharDelimiterSplit | BertPreTokenizer | Sequence | ByteLevel",
                            quoted(type)),
                kPreTokenizerHint);
  }
}

void PreTokenizer::add_split(const json& split) {
  const json& pattern = field(split, kName, "pattern", json::value_t::object);
  const bool is_literal = pattern.contains("String");
  std::string expression = text(pattern, "pre_tokenizer.pattern", is_literal ? "String" : "Regex", "");
  CADRE_CHECK(!expression.empty(), "pre_tokenizer.pattern is empty, allowed: a Regex or a String");
  steps_.push_back({.regex = Regex(std::move(expression), is_literal ? Regex::Kind::literal : Regex::Kind::pattern),
                    .behavior = behavior_of(split, ""),
                    .invert = flag(split, kName, "invert", false)});
}

void PreTokenizer::add_byte_level(const json& byte_level) {
  if (flag(byte_level, kName, "add_prefix_space", true)) steps_.push_back({});
  if (flag(byte_level, kName, "use_regex", true)) steps_.push_back({.regex = Regex(kWords)});
}

void PreTokenizer::each_word(std::string_view text, const TakeWord& take) const { run(0, text, take); }

void PreTokenizer::run(size_t step, std::string_view word, const TakeWord& take) const {
  if (word.empty()) return;
  if (step == steps_.size()) return take(word);
  if (steps_[step].regex) return cut(steps_[step], word, [&](std::string_view part) { run(step + 1, part, take); });
  if (word.front() == ' ') return run(step + 1, word, take);
  const std::string with_space = std::string(" ").append(word);
  run(step + 1, with_space, take);
}

void PreTokenizer::cut(const Step& step, std::string_view word, const TakeWord& take) {
  SplitParts parts(step.behavior, word, take);
  RegexMatches matches(*step.regex, word);
  size_t done = 0;
  while (const auto match = matches.next()) {
    if (match->begin > done) parts.add(done, match->begin, step.invert);
    parts.add(match->begin, match->end, !step.invert);
    done = match->end;
  }
  if (done < word.size()) parts.add(done, word.size(), step.invert);
  parts.finish();
}

}  // namespace cadre
