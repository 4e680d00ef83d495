// SPDX-License-Identifier: Apache-2.0
// What a body sees of the block that runs it on a device (gpu_block.hpp), and the two kernels that run bodies: all of the
// GPU back end that is device code only. tests/support/cuda_on_threads.hpp runs it on threads of the host.
#pragma once

#include <cstdint>

#include "layers/kernels/gpu_block.hpp"

namespace cadre::gpu {

extern __shared__ float4 dynamic_shared[];  // floats, aligned for whatever a body puts there

// Of the reductions of a kernel, one after the other.
__device__ inline void* reduction_room() {
  static __shared__ float4 room[kThreads];
  return room;
}

class DeviceBlock {
 public:
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ float* shared() const { return reinterpret_cast<float*>(dynamic_shared); }

  template <class F>
  __device__ void each(int64_t count, const F& f) {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) f(i);
    __syncthreads();
  }

  // Thread t joins elements t, t + threads, ..., then halves join each other: the order of the twin.
  template <class T, class F, class Join>
  __device__ T reduce(int64_t count, T zero, const F& f, const Join& join) {
    static_assert(sizeof(T) <= sizeof(float4));
    T* partial = static_cast<T*>(reduction_room());
    T mine = zero;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) mine = join(mine, f(i));
    partial[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) partial[threadIdx.x] = join(partial[threadIdx.x], partial[threadIdx.x + half]);
      __syncthreads();
    }
    const T result = partial[0];
    __syncthreads();  // the room is used again
    return result;
  }
};

template <class Body>
__global__ void __launch_bounds__(kThreads) run_elements(int64_t count, Body body) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) body(i);
}

template <class Body>
__global__ void __launch_bounds__(kThreads) run_blocks(Body body) {
  DeviceBlock block;
  body(block);
}

}  // namespace cadre::gpu
