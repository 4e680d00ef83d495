// SPDX-License-Identifier: Apache-2.0
// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cadre {

struct Sampling {
  double temperature = 1.0;  // 0: always the likeliest token
  int64_t top_k = 0;         // choose among that many likeliest tokens; 0: among all
  double top_p =
      1.0;  // then among the fewest likeliest that have this probability together; 1: all (Holtzman et al. 2020)
  uint64_t seed = 0;
  int64_t num_ids = 0;  // ids below it are tokens; those from it on, which pad a vocabulary, are not chosen. 0: all are
  std::vector<int32_t> more = {};  // but these are tokens too, each once
  // Divides positive logits of tokens that the text has already, and multiplies negative ones (Keskar et al. 2019, with the
  // rule for signs of transformers). 1: none.
  double repetition_penalty = 1.0;
};

// Draws from softmax(logits / temperature) over the kept tokens, with the random number of (seed, position): the same
// text wherever and on however many ranks it is made. Of equal logits the lower id counts as likelier. `text`, all tokens
// before this one, is read where there is a repetition_penalty. Throws ErrorKind::numerics on a NaN or infinite logit.
int32_t sample_token(std::span<const float> logits, const Sampling& sampling, int64_t position,
                     std::span<const int32_t> text = {});

// log softmax(logits)[token], in fp64.
double log_probability(std::span<const float> logits, int32_t token);

// Texts that end where one of some strings appears.

// Reads a text as it is made and gives it back up to the first of the strings, which may begin anywhere in it. What may be
// the beginning of one is held back until it is clear.
class StopStrings {
 public:
  // Empty strings stop nothing.
  explicit StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {}

  // What is certain now. Of strings that end at the same byte the longest counts. Nothing once the text is over.
  std::string put(std::string_view bytes);
  // What was held back, at the end of the text.
  std::string finish();
  bool is_over() const { return is_over_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool is_over_ = false;
};

}  // namespace cadre
