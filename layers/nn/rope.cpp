// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// The pair, as a real number, that turns that often within the original length.
double pair_with_turns(double turns, double theta, int64_t dim, int64_t length) {
  return static_cast<double>(dim) * std::log(static_cast<double>(length) / (turns * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(theta));
}

}  // namespace

Rope plain_rope(double theta, int64_t dim, RopeLayout layout) {
  CADRE_CHECK(dim % 2 == 0, fmt::format("{} elements of a head turn with the position, which is odd", dim),
              "rotary positions turn pairs of elements");
  Rope rope;
  rope.layout = layout;
  for (int64_t i = 0; i < dim / 2; ++i) {
    rope.frequencies.push_back(std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim)));
  }
  return rope;
}

Rope yarn_rope(double theta, int64_t dim, RopeLayout layout, const YarnOptions& yarn) {
  Rope rope = plain_rope(theta, dim, layout);
  const int64_t length = yarn.original_max_position_embeddings;
  double low = pair_with_turns(yarn.beta_fast, theta, dim, length);
  double high = pair_with_turns(yarn.beta_slow, theta, dim, length);
  if (yarn.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < rope.frequencies.size(); ++i) {
    const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    rope.frequencies[i] *= stretched / yarn.factor + (1.0 - stretched);
  }
  rope.factor = yarn.attention_factor;
  if (rope.factor == 0.0) {
    rope.factor = yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim);
  }
  return rope;
}

double yarn_mscale(double factor, double m) { return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

}  // namespace cadre
