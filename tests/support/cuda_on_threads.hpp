// SPDX-License-Identifier: Apache-2.0
// What layers/kernels/gpu/cuda_block.cuh needs of CUDA, on threads of the host: each thread of a block is one, __syncthreads a
// barrier, a shuffle words between two barriers. So the code that divides work, waits and reduces is what runs on a device,
// and the thread sanitizer sees a barrier that is missing. Slow: for small shapes.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <deque>
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

// Of as many threads as there are, that wait for each other.
class Barrier {
 public:
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  void wait() { static_cast<void>(pthread_barrier_wait(&barrier_)); }

 private:
  pthread_barrier_t barrier_;
};

// What the threads of a warp show each other.
struct Warp {
  Barrier barrier{cadre::gpu::kWarp};
  std::array<unsigned, cadre::gpu::kWarp> words = {};
};

inline thread_local Barrier* block_barrier;
inline thread_local Warp* this_warp;

}  // namespace cadre::test

struct float4 {
  alignas(16) float x, y, z, w;
};
inline thread_local cadre::test::Index threadIdx, blockIdx;
inline void __syncthreads() { cadre::test::block_barrier->wait(); }
inline void __syncwarp() { cadre::test::this_warp->barrier.wait(); }
inline unsigned __shfl_sync(unsigned, unsigned word, int lane) {
  cadre::test::Warp& warp = *cadre::test::this_warp;
  warp.words[threadIdx.x % cadre::gpu::kWarp] = word;
  warp.barrier.wait();
  const unsigned there = warp.words[static_cast<size_t>(lane)];
  warp.barrier.wait();
  return there;
}
inline unsigned __reduce_max_sync(unsigned, unsigned word) {
  for (int lane = 0; lane < cadre::gpu::kWarp; ++lane) word = std::max(word, __shfl_sync(0, word, lane));
  return word;
}

#include "layers/kernels/gpu/cuda_block.cuh"

float4 cadre::gpu::dynamic_shared[kSharedFloats / 4];

namespace cadre::test {

// The twin, but for launches: those go through the kernels of cuda_block.cuh, one block after the other.
class ThreadsMachine : public TwinMachine {
 public:
  explicit ThreadsMachine(TwinFp8 fp8 = TwinFp8::rounded)
      : TwinMachine(TwinOrder::ascending, TwinMemory::copied, fp8) {}

  template <class Body>
  void elements(int64_t count, const Body& body) {
    const int64_t blocks = (count + gpu::kThreads - 1) / gpu::kThreads;
    push([=] { launch(blocks, gpu::kThreads, [&] { gpu::run_elements(count, body); }); });
  }
  template <class Body>
  void blocks(int64_t count, int64_t, const Body& body) {
    push([=] { launch(count, gpu::num_threads(body), [&] { gpu::run_blocks(body); }); });
  }

 private:
  template <class Kernel>
  static void launch(int64_t blocks, unsigned num_threads, const Kernel& kernel) {
    Barrier barrier(num_threads);
    std::deque<Warp> warps(num_threads / gpu::kWarp);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < num_threads; ++i) {
      threads.emplace_back([&, i] {
        threadIdx.x = i;
        block_barrier = &barrier;
        this_warp = &warps[i / gpu::kWarp];
        for (int64_t block = 0; block < blocks; ++block) {
          blockIdx.x = static_cast<unsigned>(block);
          kernel();
          __syncthreads();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

}  // namespace cadre::test
