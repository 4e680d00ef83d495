// SPDX-License-Identifier: Apache-2.0
// How far the wire may move an element of a row, from the definition of its format.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "comm/wire/format.hpp"

namespace cadre::test {

// u = 2^-24 is what one fp32 operation may be off, relatively.
//   bf16: 8 significant bits, so half a unit is at most 2^-8 |x|; fp64 values are rounded to fp32 first, u more.
//   fp8:  q = x / scale is rounded to 4 significant bits: at most 2^-4 |q|, or, below 2^-6, half of 2^-9. So at most
//         max(2^-4 |x|, 2^-10 scale). The division, the product that decodes and the rounding to fp32 are u each, and
//         the largest q may be 448 (1 + u) and saturate: 8 u are enough for all of it.
inline constexpr double kWireSlack = 8.0 * 0x1p-24;

inline double bf16_bound(double value) { return std::fabs(value) * (0x1p-8 + kWireSlack); }

// Of the tile that element i is in.
template <class T>
double fp8_scale(const std::vector<T>& row, size_t i) {
  const size_t first = i / kFp8TileChannels * kFp8TileChannels;
  const size_t last = std::min(row.size(), first + kFp8TileChannels);
  double amax = 1e-4;
  for (size_t j = first; j < last; ++j) amax = std::max(amax, std::fabs(static_cast<double>(row[j])));
  return amax / 448.0;
}

inline double fp8_bound(double value, double scale) {
  return (1.0 + kWireSlack) * std::max(std::fabs(value) * 0x1p-4, scale * 0x1p-10) + kWireSlack * std::fabs(value);
}

template <class T>
double wire_bound(Wire wire, const std::vector<T>& row, size_t i) {
  const auto value = static_cast<double>(row[i]);
  switch (wire) {
    case Wire::same: return 0.0;
    case Wire::bf16: return bf16_bound(value);
    case Wire::fp8: return fp8_bound(value, fp8_scale(row, i));
  }
  return 0.0;
}

}  // namespace cadre::test
