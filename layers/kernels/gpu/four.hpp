// SPDX-License-Identifier: Apache-2.0
// Four elements at once: one access of 16 bytes a thread, where arrays lie so. A body says once what it does with a float.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "layers/kernels/gpu/block.hpp"

namespace cadre::gpu {

template <class T>
struct alignas(4 * sizeof(T)) FourOf {
  T at[4];
};
using Four = FourOf<float>;

// Whether rows of `count` elements without gaps may be taken four at a time from each of these addresses.
template <class... T>
CADRE_DEVICE bool in_fours(int64_t count, const T*... arrays) {
  return count % 4 == 0 && (... && (reinterpret_cast<uintptr_t>(arrays) % sizeof(FourOf<T>) == 0));
}

// Element i of an array, or its i-th four.
template <class V, class T>
CADRE_DEVICE V& at(T* array, int64_t i) {
  return reinterpret_cast<V*>(array)[i];
}
template <class V, class T>
CADRE_DEVICE const V& at(const T* array, int64_t i) {
  return reinterpret_cast<const V*>(array)[i];
}

// f of floats, or of each of four.
template <class F, std::same_as<float>... Floats>
CADRE_DEVICE auto by_float(const F& f, Floats... values) {
  return f(values...);
}
template <class F, std::same_as<Four>... Fours>
CADRE_DEVICE auto by_float(const F& f, Fours... values) {
  using Result = decltype(f(values.at[0]...));
  return FourOf<Result>{{f(values.at[0]...), f(values.at[1]...), f(values.at[2]...), f(values.at[3]...)}};
}

// f(type_identity<V>(), i) for each column of a row, V being float, or for each four of them.
template <class Block, class F>
CADRE_DEVICE void each_column(Block& block, int64_t width, bool fours, const F& f) {
  if (fours) {
    block.each(width / 4, [&](int64_t i) { f(std::type_identity<Four>(), i); });
  } else {
    block.each(width, [&](int64_t i) { f(std::type_identity<float>(), i); });
  }
}
CADRE_DEVICE constexpr int threads_for_columns(int64_t width, bool fours) {
  return threads_for(fours ? width / 4 : width);
}

// What calls an element body once for four elements: one that has fours(count), whether it may, and takes a V.
template <class Body>
struct ByFours {
  Body body;
  CADRE_DEVICE void operator()(int64_t i) const { body.template operator()<Four>(i); }
};

}  // namespace cadre::gpu
