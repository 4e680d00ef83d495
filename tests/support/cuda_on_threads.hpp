// SPDX-License-Identifier: Apache-2.0
// What layers/kernels/cuda_block.cuh needs of CUDA, on threads of the host: each thread of a block is one, __syncthreads a
// barrier. So the code that divides work, waits and reduces is what runs on a device, and the thread sanitizer sees a
// barrier that is missing. Slow: for small shapes.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <thread>
#include <vector>

#include "tests/support/gpu_twin_machine.hpp"

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(threads)

namespace cadre::test {

struct Index {
  unsigned x = 0;
};

inline pthread_barrier_t block_barrier;

}  // namespace cadre::test

struct float4 {
  alignas(16) float x, y, z, w;
};
inline thread_local cadre::test::Index threadIdx, blockIdx;
inline void __syncthreads() { static_cast<void>(pthread_barrier_wait(&cadre::test::block_barrier)); }

#include "layers/kernels/cuda_block.cuh"

float4 cadre::gpu::dynamic_shared[kSharedFloats / 4];

namespace cadre::test {

// The twin, but for launches: those go through the kernels of cuda_block.cuh, one block after the other.
class ThreadsMachine : public TwinMachine {
 public:
  explicit ThreadsMachine(TwinFp8 fp8 = TwinFp8::rounded)
      : TwinMachine(TwinOrder::ascending, TwinMemory::copied, fp8) {}

  template <class Body>
  void elements(int64_t count, const Body& body) {
    push([=] { launch((count + gpu::kThreads - 1) / gpu::kThreads, [&] { gpu::run_elements(count, body); }); });
  }
  template <class Body>
  void blocks(int64_t count, int64_t, const Body& body) {
    push([=] { launch(count, [&] { gpu::run_blocks(body); }); });
  }

 private:
  template <class Kernel>
  static void launch(int64_t blocks, const Kernel& kernel) {
    pthread_barrier_init(&block_barrier, nullptr, gpu::kThreads);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < gpu::kThreads; ++i) {
      threads.emplace_back([&, i] {
        threadIdx.x = i;
        for (int64_t block = 0; block < blocks; ++block) {
          blockIdx.x = static_cast<unsigned>(block);
          kernel();
          __syncthreads();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    pthread_barrier_destroy(&block_barrier);
  }
};

}  // namespace cadre::test
