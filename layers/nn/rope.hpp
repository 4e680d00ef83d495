// SPDX-License-Identifier: Apache-2.0
// The frequencies of rotary positions, plain or stretched to longer texts by YaRN (Peng et al. 2023, arXiv 2309.00071) in
// the form of DeepSeek-V2 and V3.
#pragma once

#include <cstdint>

#include "layers/kernels/kernels.hpp"

namespace cadre {

struct YarnOptions {
  double factor = 1.0;  // how many times longer texts become
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;
  double mscale_all_dim = 0.0;
  int64_t original_max_position_embeddings = 4096;
  double attention_factor = 0.0;  // 0: from mscale and mscale_all_dim
  bool truncate = true;
};

// Pairs of `dim` elements, an even number, that turn by theta^(-2i / dim).
Rope plain_rope(double theta, int64_t dim, RopeLayout layout);

// Pairs that turn more than beta_fast times within the original length keep their frequency, those below beta_slow turns
// get it divided by `factor`, those between a mixture; with `truncate` the first and the last of these are rounded outwards to
// whole pairs. The factor of all is attention_factor, or mscale(mscale) / mscale(mscale_all_dim), see yarn_mscale.
Rope yarn_rope(double theta, int64_t dim, RopeLayout layout, const YarnOptions& yarn);

// 1 for factor <= 1, else 0.1 m ln(factor) + 1. Its square, with m = mscale_all_dim, multiplies the softmax scale.
double yarn_mscale(double factor, double m);

}  // namespace cadre
