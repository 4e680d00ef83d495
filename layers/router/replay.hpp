// SPDX-License-Identifier: Apache-2.0
// Routing that was recorded, to be used again in place of what routers choose: two precisions, or two engines, then compute
// with the same experts.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {

// Of the tokens of a micro-batch.
struct Replay {
  std::map<int, std::vector<int32_t>> ids;  // of each mixture layer [T,K]: experts of a token, best first; -1: none
  // Added to by routers: recorded choices, and of them those that the router would not have made.
  int64_t choices = 0;
  int64_t differing = 0;
};

// Replaces ids i32[T,K], the choice of the router of `layer`, by the recorded one. Throws where that has another size.
void use_recorded(Replay& replay, int layer, const Tensor& ids);

}  // namespace cadre
