// SPDX-License-Identifier: Apache-2.0
// What an exchange takes and gives: elements of equal size, wherever they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace cadre {

// Elements anywhere in memory: element i starts at base + index[i] * stride; without an index, at base + i * stride.
struct Elements {
  const std::byte* base = nullptr;
  size_t stride = 0;  // bytes
  std::span<const int32_t> index = {};
  // On the way to the tokens: token t has elements offsets[t] .. offsets[t+1], which are to be added up.
  std::span<const int32_t> offsets = {};

  const std::byte* at(int64_t i) const {
    return base + static_cast<size_t>(index.empty() ? i : index[static_cast<size_t>(i)]) * stride;
  }
  // Elements first .. first + count alone.
  Elements part(int64_t first, int64_t count) const {
    if (index.empty()) return {base + static_cast<size_t>(first) * stride, stride};
    return {base, stride, index.subspan(static_cast<size_t>(first), static_cast<size_t>(count))};
  }
};

}  // namespace cadre
