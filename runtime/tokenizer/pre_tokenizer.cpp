// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/pre_tokenizer.hpp"

#include <fmt/format.h>

#include <string>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/json_fields.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr const char* kName = "pre_tokenizer";
constexpr const char* kHint = "only byte-level tokenizers are read, in the style of GPT-2, Llama 3 and DeepSeek";
constexpr size_t kMaxSteps = 64;  // each is a level of calls

// What ByteLevel cuts at when it is not told otherwise: the words of GPT-2.
constexpr const char* kWords = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

PreTokenizer::PreTokenizer(const json& description) {
  const std::string type = type_of(description, kName);
  if (type != "Sequence") {
    add(description, /*is_last=*/true);
    return;
  }
  const json& list = field(description, kName, "pretokenizers", json::value_t::array);
  CADRE_CHECK(!list.empty() && list.size() <= kMaxSteps,
              fmt::format("pre_tokenizer.pretokenizers has {} steps, allowed: 1 to {}", list.size(), kMaxSteps), kHint);
  for (size_t i = 0; i < list.size(); ++i) add(list[i], i + 1 == list.size());
}

void PreTokenizer::add(const json& step, bool is_last) {
  const std::string type = type_of(step, kName);
  CADRE_CHECK((type == "ByteLevel") == is_last,
              fmt::format("pre_tokenizer: {} stands {}, allowed: ByteLevel at the end and nowhere else", quoted(type),
                          is_last ? "at the end" : "before the end"),
              kHint);
  if (is_last) return add_byte_level(step);
  if (type == "Split") return add_split(step);
  CADRE_CHECK(type == "Digits", fmt::format("pre_tokenizer: {}, allowed: Split | Digits | ByteLevel", quoted(type)),
              kHint);
  steps_.push_back({.regex = Regex(flag(step, kName, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)")});
}

void PreTokenizer::add_split(const json& split) {
  const json& pattern = field(split, kName, "pattern", json::value_t::object);
  const bool is_literal = pattern.contains("String");
  std::string expression = text(pattern, "pre_tokenizer.pattern", is_literal ? "String" : "Regex", "");
  CADRE_CHECK(!expression.empty(), "pre_tokenizer.pattern is empty, allowed: a Regex or a String");
  const std::string behavior = text(split, kName, "behavior", "");
  CADRE_CHECK(behavior == "Isolated" || behavior == "Removed",
              fmt::format("pre_tokenizer.behavior = {}, allowed: Isolated | Removed", quoted(behavior)), kHint);
  Step step = {.regex = Regex(std::move(expression), is_literal ? Regex::Kind::literal : Regex::Kind::pattern)};
  if (behavior == "Removed") {
    (flag(split, kName, "invert", false) ? step.keeps_others : step.keeps_matches) = false;
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::add_byte_level(const json& byte_level) {
  if (flag(byte_level, kName, "add_prefix_space", true)) steps_.push_back({});
  if (flag(byte_level, kName, "use_regex", true)) steps_.push_back({.regex = Regex(kWords)});
}

void PreTokenizer::each_word(std::string_view text, const TakeWord& take) const { run(0, text, take); }

void PreTokenizer::run(size_t step, std::string_view word, const TakeWord& take) const {
  if (word.empty()) return;
  if (step == steps_.size()) return take(word);
  if (steps_[step].regex) return cut(step, word, take);
  if (word.front() == ' ') return run(step + 1, word, take);
  const std::string with_space = std::string(" ").append(word);
  run(step + 1, with_space, take);
}

void PreTokenizer::cut(size_t step, std::string_view word, const TakeWord& take) const {
  const auto& [regex, keeps_matches, keeps_others] = steps_[step];
  RegexMatches matches(*regex, word);
  size_t done = 0;
  while (const auto match = matches.next()) {
    if (keeps_others) run(step + 1, word.substr(done, match->begin - done), take);
    if (keeps_matches) run(step + 1, word.substr(match->begin, match->end - match->begin), take);
    done = match->end;
  }
  if (keeps_others) run(step + 1, word.substr(done), take);
}

}  // namespace cadre
