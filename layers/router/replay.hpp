// SPDX-License-Identifier: Apache-2.0
// Routing that was recorded, to be used again in place of what routers choose: two precisions, or two engines, then compute
// with the same experts.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {

inline constexpr int32_t kNotRecorded = -2;

// What was replayed, over tokens and mixture layers.
struct ReplayCounts {
  int64_t choices = 0;
  int64_t differing = 0;  // of them, those that the routers would not have made
};

// Of the tokens of a micro-batch.
struct Replay {
  // Of mixture layers [T,K]: experts of a token, best first; -1: none. A token with kNotRecorded, and a layer that is not here,
  // is left to the router.
  std::map<int, std::vector<int32_t>> ids;
  ReplayCounts counts;  // routers add to it
};

// Replaces ids i32[T,K], the choice of the router of `layer`, by the recorded one. Throws where that has another size.
void use_recorded(Replay& replay, int layer, const Tensor& ids);

}  // namespace cadre
