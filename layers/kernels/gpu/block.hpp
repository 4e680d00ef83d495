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
//
// So that both runs agree: within one `each` no f(i) reads what another writes, and what stands outside of `each` is the
// same for all threads of the block. The twin runs every `each` in both directions to find an offence.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CADRE_DEVICE __host__ __device__
#else
#define CADRE_DEVICE
#endif

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

}  // namespace cadre::gpu
