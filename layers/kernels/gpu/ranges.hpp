// SPDX-License-Identifier: Apache-2.0
// Which addresses a device reaches: the allocations that were made for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>

namespace cadre::gpu {

class AddressRanges {
 public:
  void add(const void* begin, size_t bytes) { ends_[address(begin)] = address(begin) + bytes; }
  void remove(const void* begin) { ends_.erase(address(begin)); }
  // Whether all bytes lie within one of them. No bytes lie anywhere.
  bool contain(const void* begin, size_t bytes) const {
    if (bytes == 0) return true;
    const auto next = ends_.upper_bound(address(begin));
    return next != ends_.begin() && address(begin) + bytes <= std::prev(next)->second;
  }

 private:
  static uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

  std::map<uintptr_t, uintptr_t> ends_;  // by begin
};

}  // namespace cadre::gpu
