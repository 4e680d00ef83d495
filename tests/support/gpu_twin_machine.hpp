// SPDX-License-Identifier: Apache-2.0
// A Machine (layers/kernels/gpu_call.hpp) that is the host.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/kernels/gpu_products.hpp"
#include "layers/kernels/gpu_ranges.hpp"
#include "tests/support/gpu_twin.hpp"

namespace cadre::test {

// f(i) for i in [0, count), in either direction.
template <class F>
void in_order(TwinOrder order, int64_t count, const F& f) {
  for (int64_t i = 0; i < count; ++i) f(order == TwinOrder::ascending ? i : count - 1 - i);
}

// What a block body sees. All threads of the block are this one.
class TwinBlock {
 public:
  TwinBlock(TwinOrder order, int64_t index, float* shared) : order_(order), index_(index), shared_(shared) {}

  int64_t index() const { return index_; }
  float* shared() const { return shared_; }

  template <class F>
  void each(int64_t count, const F& f) {
    in_order(order_, count, f);
  }

  // As on a device: thread t joins elements t, t + threads, ..., then halves join each other.
  template <class T, class F, class Join>
  T reduce(int64_t count, T zero, const F& f, const Join& join) {
    std::array<T, gpu::kThreads> partial;
    partial.fill(zero);
    in_order(order_, gpu::kThreads, [&](int64_t thread) {
      T& mine = partial[static_cast<size_t>(thread)];
      for (int64_t i = thread; i < count; i += gpu::kThreads) mine = join(mine, f(i));
    });
    for (size_t half = gpu::kThreads / 2; half > 0; half /= 2) {
      for (size_t thread = 0; thread < half; ++thread) partial[thread] = join(partial[thread], partial[thread + half]);
    }
    return partial[0];
  }

 private:
  TwinOrder order_;
  int64_t index_;
  float* shared_;
};

// Memory of the host that knows what it handed out.
class OwnMemory final : public Memory {
 public:
  std::byte* allocate(size_t bytes) override {
    std::byte* data = host_memory().allocate(bytes);
    ranges_.add(data, bytes);
    return data;
  }
  void release(std::byte* data) noexcept override {
    ranges_.remove(data);
    host_memory().release(data);
  }
  bool reaches(const void* data, size_t bytes) const { return ranges_.contain(data, bytes); }

 private:
  gpu::AddressRanges ranges_;
};

class TwinMachine {
 public:
  TwinMachine(TwinOrder order, TwinMemory memory) : order_(order), memory_(memory) {}

  bool reaches(const void* data, size_t bytes) const {
    return memory_ == TwinMemory::reached || (memory_ == TwinMemory::own && own_.reaches(data, bytes));
  }

  // Each piece is an allocation of its own, so that the address sanitizer sees a step beyond it; what nobody wrote is NaN.
  std::byte* scratch(size_t bytes) { return scratch_.emplace_back(std::max<size_t>(bytes, 1), std::byte{0xff}).data(); }
  void copy_in(std::byte* device, const std::byte* host, size_t bytes) { std::memcpy(device, host, bytes); }
  void copy_out(void* host, const void* device, size_t bytes) {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }

  void copy_on_device(std::byte* to, const std::byte* from, size_t bytes) { std::memcpy(to, from, bytes); }
  std::unique_ptr<DeviceClock> make_clock() const { return make_host_clock(); }

  template <class Body>
  void elements(int64_t count, const Body& body) {
    in_order(order_, count, body);
  }
  template <class Body>
  void blocks(int64_t count, int64_t shared_floats, const Body& body) {
    if (shared_floats > gpu::kSharedFloats) throw std::runtime_error("more shared memory than a GPU block has");
    in_order(order_, count, [&](int64_t index) {
      std::vector<float> shared(static_cast<size_t>(shared_floats), std::numeric_limits<float>::quiet_NaN());
      TwinBlock block(order_, index, shared.data());
      body(block);
    });
  }

  // As cuBLASLt is told to.
  template <class T>
  void multiply(const gpu::ProductShape& shape, const T* a, const T* b, float* d) {
    const gpu::ColumnMajorProduct product = gpu::in_column_major(shape);
    const auto element = [](const T* matrix, const auto& stored, int64_t row, int64_t column) {
      return double{gpu::load(matrix[stored.transposed ? row * stored.rows + column : column * stored.rows + row])};
    };
    in_order(order_, product.result.columns, [&](int64_t column) {
      for (int64_t row = 0; row < product.result.rows; ++row) {
        float& out = d[column * product.result.rows + row];
        double sum = shape.accumulate == Accumulate::yes ? double{out} : 0.0;
        for (int64_t k = 0; k < shape.inner; ++k) {
          sum += element(b, product.first, row, k) * element(a, product.second, k, column);
        }
        out = static_cast<float>(sum);
      }
    });
  }

  template <class T>
  void multiply_grouped(std::span<const gpu::Product<T>> products) {
    in_order(order_, static_cast<int64_t>(products.size()), [&](int64_t i) {
      const gpu::Product<T>& product = products[static_cast<size_t>(i)];
      multiply(product.shape, product.a, product.b, product.d);
    });
  }

  Memory& memory() { return own_; }
  void begin() { scratch_.clear(); }
  void finish() {}

 private:
  TwinOrder order_;
  TwinMemory memory_;
  OwnMemory own_;
  std::deque<std::vector<std::byte>> scratch_;
};

}  // namespace cadre::test
