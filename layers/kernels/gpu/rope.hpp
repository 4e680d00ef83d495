// SPDX-License-Identifier: Apache-2.0
// The body that turns heads with their position, a block a token.
#pragma once

#include <cmath>

#include "layers/kernels/gpu/block.hpp"

namespace cadre::gpu {

inline constexpr int64_t kMaxRopePairs = 256;  // they travel in the launch's arguments

struct Turn {
  float* x;
  const int32_t* positions;
  int64_t heads;
  int64_t head_dim;
  int64_t first;
  int64_t pairs;
  int64_t step;   // from a pair to the next
  int64_t apart;  // the two of a pair
  double sign;
  double factor;
  double frequencies[kMaxRopePairs];

  // Angles are in fp64: far from the start of a text, fp32 would have lost them.
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    float* cosines = block.shared();  // [pairs]
    float* sines = cosines + pairs;   // [pairs]
    block.each(pairs, [&](int64_t i) {
      const double angle = sign * positions[block.index()] * frequencies[i];
      cosines[i] = static_cast<float>(factor * cos(angle));
      sines[i] = static_cast<float>(factor * sin(angle));
    });
    block.each(heads * pairs, [&](int64_t i) {
      const int64_t pair = i % pairs;
      float* low = x + (block.index() * heads + i / pairs) * head_dim + first + pair * step;
      float* high = low + apart;
      const float a = *low;
      const float b = *high;
      *low = a * cosines[pair] - b * sines[pair];
      *high = a * sines[pair] + b * cosines[pair];
    });
  }
};

}  // namespace cadre::gpu
