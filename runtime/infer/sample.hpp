// SPDX-License-Identifier: Apache-2.0
// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
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
};

// Draws from softmax(logits / temperature) over the kept tokens, with the random number of (seed, position): the same
// text wherever and on however many ranks it is made. Of equal logits the lower id counts as likelier. Throws
// ErrorKind::numerics on a NaN or infinite logit.
int32_t sample_token(std::span<const float> logits, const Sampling& sampling, int64_t position);

}  // namespace cadre
