// SPDX-License-Identifier: Apache-2.0
// How a kernel body is written once and runs twice: by nvcc on a device, and by any compiler in plain loops, where tests
// compare it with the reference. A body is a plain struct of pointers and sizes. It names no thread.
//
// An element body is called once for each i:      void operator()(int64_t i) const
// A block body is called once for each block:     template <class Block> void operator()(Block& block) const
//
//   block.index()                 which block, from 0
//   block.each(n, f)              f(i) for i in [0, n), shared out among the threads, then a barrier
//   block.reduce(n, zero, f, j)   f(0) j f(1) j ... in an order that depends on n alone; all threads have the result
//   block.shared()                the floats that the launch asked for, common to the threads of the block
//
// n is below 2^31. A block body may say how many threads its blocks have: int threads() const, the same on both sides.
// CADRE_DEVICE, which layers/CMakeLists.txt defines, marks what runs on both.
//
// So that both runs agree: within one `each` no f(i) reads what another writes, and what stands outside of `each` is the
// same for all threads of the block. The twin runs every `each` in both directions to find an offence.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace cadre::gpu {

inline constexpr int kWarp = 32;      // threads that exchange values without shared memory
inline constexpr int kThreads = 256;  // of a block: the most, and where its body says nothing

// Of a block that goes over `count` elements, a thread each.
CADRE_DEVICE constexpr int threads_for(int64_t count) {
  if (count >= kThreads) return kThreads;
  return count <= kWarp ? kWarp : static_cast<int>((count + kWarp - 1) / kWarp) * kWarp;
}

template <class Body>
CADRE_DEVICE constexpr int num_threads(const Body& body) {
  if constexpr (requires { body.threads(); }) {
    return body.threads();
  } else {
    return kThreads;
  }
}

// Floats of shared memory that a block may ask for on any device: of 48 KiB, what reductions leave.
inline constexpr int64_t kSharedFloats = 44 * 1024 / 4;

// How many tiles `count` has, the last of which may be a part.
CADRE_DEVICE inline int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }

// Joins for Block::reduce.
struct Plus {
  template <class T>
  CADRE_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  CADRE_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

template <class Block, class Term>
CADRE_DEVICE float sum(Block& block, int64_t count, const Term& term) {
  return block.reduce(count, 0.0F, term, Plus());
}

// Four elements at once: one access of 16 bytes a thread, where arrays lie so. A body says once what it does with a float.
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
