// SPDX-License-Identifier: Apache-2.0
// What an exchange takes and gives: elements of equal size, wherever they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace cadre {

// Elements anywhere in memory: element i starts at base + index[i] * stride; without an index, at base + i * stride.
struct Elements {
  const std::byte* base = nullptr;
  size_t stride = 0;  // bytes
  std::span<const int32_t> index = {};
  // On the way to the tokens: token t has elements offsets[t] .. offsets[t+1], which are to be added up.
  std::span<const int32_t> offsets = {};
  // Of the memory that they lie in. Elements without one are copied before they are sent.
  std::shared_ptr<const void> owner = {};

  const std::byte* at(int64_t i) const {
    return base + static_cast<size_t>(index.empty() ? i : index[static_cast<size_t>(i)]) * stride;
  }
  // Elements first .. first + count alone.
  Elements part(int64_t first, int64_t count) const {
    if (index.empty()) return {base + static_cast<size_t>(first) * stride, stride, {}, {}, owner};
    return {base, stride, index.subspan(static_cast<size_t>(first), static_cast<size_t>(count)), {}, owner};
  }
};

}  // namespace cadre
