// SPDX-License-Identifier: Apache-2.0
// What a body sees of the block that runs it on a device (block.hpp), and the two kernels that run bodies: all of the
// GPU back end that is device code only. tests/support/cuda_on_threads.hpp runs it on threads of the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "layers/kernels/gpu/block.hpp"

namespace cadre::gpu {

extern __shared__ float4 dynamic_shared[];  // floats, aligned for whatever a body puts there

// What warps hand each other in a reduction. The next one uses the other room, and in it all threads meet before the third.
__device__ inline void* reduction_room(bool odd) {
  static __shared__ float4 rooms[2][kThreads / kWarp];
  return rooms[odd ? 1 : 0];
}

// What another thread of the warp, counted round from its first, calls `value`. Word by word.
template <class T>
__device__ T from_lane(unsigned lane, const T& value) {
  unsigned words[(sizeof(T) + 3) / 4] = {};
  memcpy(words, &value, sizeof(T));
  for (unsigned& word : words) word = __shfl_sync(0xffffffffU, word, static_cast<int>(lane % kWarp));
  T there;
  memcpy(&there, words, sizeof(T));
  return there;
}

// The first thread of the warp has the values of all, joined.
template <class T, class Join>
__device__ T reduce_warp(T mine, const Join& join) {
  for (unsigned half = kWarp / 2; half > 0; half /= 2) mine = join(mine, from_lane(threadIdx.x + half, mine));
  return mine;
}
// The same by instructions for it: halves of a key, the upper one first.
__device__ inline uint64_t reduce_warp(uint64_t mine, const Larger&) {
  const unsigned upper = __reduce_max_sync(0xffffffffU, static_cast<unsigned>(mine >> 32));
  const unsigned lower = __reduce_max_sync(0xffffffffU, mine >> 32 == upper ? static_cast<unsigned>(mine) : 0);
  return uint64_t{upper} << 32 | lower;
}

class DeviceBlock {
 public:
  __device__ explicit DeviceBlock(unsigned threads) : threads_(threads) {}
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ float* shared() const { return reinterpret_cast<float*>(dynamic_shared); }

  template <class F>
  __device__ void each(int64_t count, const F& f) {
    share_out(count, f);
    meet();
  }

  // Thread t joins elements t, t + threads, ..., in a warp halves join each other, then warps are joined in order: the order
  // of the twin.
  template <class T, class F, class Join>
  __device__ T reduce(int64_t count, T zero, const F& f, const Join& join) {
    static_assert(sizeof(T) <= sizeof(float4));
    T mine = zero;
    share_out(count, [&](int64_t i) { mine = join(mine, f(i)); });
    mine = reduce_warp(mine, join);
    if (threads_ == kWarp) {
      meet();
      return from_lane(0, mine);
    }
    T* of_warp = static_cast<T*>(reduction_room(odd_));
    odd_ = !odd_;
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = mine;
    meet();
    T all = of_warp[0];
    for (unsigned warp = 1; warp < threads_ / kWarp; ++warp) all = join(all, of_warp[warp]);
    return all;
  }

 private:
  template <class F>
  __device__ void share_out(int64_t count, const F& f) const {
    for (unsigned i = threadIdx.x; i < static_cast<unsigned>(count); i += threads_) f(i);
  }
  __device__ void meet() const { threads_ == kWarp ? __syncwarp() : __syncthreads(); }

  unsigned threads_;
  bool odd_ = false;
};

template <class Body>
__global__ void __launch_bounds__(kThreads) run_elements(int64_t count, Body body) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) body(i);
}

template <class Body>
__global__ void __launch_bounds__(kThreads) run_blocks(Body body) {
  DeviceBlock block(num_threads(body));
  body(block);
}

}  // namespace cadre::gpu
