// SPDX-License-Identifier: Apache-2.0
// One call of a kernel: which memory its operands are in, and the way there and back. Memory that the device reaches is
// used where it is; other memory goes through a copy on the device. Private to the GPU back end and its twin.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "layers/kernels/gpu/block.hpp"
#include "layers/kernels/gpu/rows.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre::gpu {

// What a Machine has, on a device or as its twin:
//   bool reaches(const void*, size_t)            whether kernels may use that memory
//   std::byte* scratch(size_t)                   device memory until the next begin(), aligned to 256 bytes
//   std::byte* staging(size_t)                   memory of the host that copy_in reads, as it is from then on (staging.hpp)
//   void copy_in(device, staging, bytes), copy_out(host, device, bytes), copy_on_device(to, from, bytes)
//   void elements(count, body), blocks(count, shared_floats, body)
//   bool multiplies_fp8()                        whether operands may be fp8 codes with scales
//   void multiply(ProductShape, a, b, float* d)  multiply.hpp has shapes and operands
//   void multiply_grouped(span<const Product>)   several of them, which touch nothing of each other's
//   Memory& memory()                             memory that kernels reach; for_results() of it the host reaches too
//   Memory& message_memory()                     memory that kernels reach, and transports
//   unique_ptr<DeviceClock> make_clock()         of what is launched
//   void begin()                                 a call begins
//   Request launched()                           complete when all that was told so far is done
//   void wait()                                  until then
//   void* queue()                                of Kernels
// Copies, launches and products may be done later, in their order. A call that has results in other memory, or returns some,
// waits for them; any other only launches.
template <class Machine>
class Call {
 public:
  explicit Call(Machine& machine) : machine_(machine) { machine_.begin(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Operands. Only read, wholly written, or anything else.
  template <class T = float>
  const T* in(const Tensor& tensor) {
    return tensor.defined() ? reinterpret_cast<const T*>(placed(tensor.raw(), tensor.bytes(), /*read=*/true)) : nullptr;
  }
  template <class T = float>
  T* out(const Tensor& tensor) {
    return reinterpret_cast<T*>(written(tensor, /*read=*/false));
  }
  template <class T = float>
  T* both(const Tensor& tensor) {
    return reinterpret_cast<T*>(written(tensor, /*read=*/true));
  }

  // Rows that an index picks, or the first `count`. Where the device does not reach all that lies between the first and the
  // last of them, they are packed on the host.
  PickedRows rows(const Rows& rows, const Tensor& index) {
    return this->rows(rows, {index.data<int32_t>(), static_cast<size_t>(index.numel())}, index.numel());
  }
  PickedRows rows(const Rows& rows, std::span<const int32_t> index, int64_t count) {
    const auto row_bytes = static_cast<size_t>(rows.width) * size_of(rows.dtype);
    if (count == 0) return {rows.base, rows.stride, nullptr};
    const auto at = [&](int64_t i) { return index.empty() ? i : int64_t{index[static_cast<size_t>(i)]}; };
    int64_t first = 0;
    int64_t last = count - 1;
    if (!index.empty()) {
      const auto [lowest, highest] = std::ranges::minmax(index);
      first = lowest;
      last = highest;
    }
    const auto* begin = rows.base + first * rows.stride;
    if (machine_.reaches(begin, static_cast<size_t>((last - first) * rows.stride) + row_bytes)) {
      return {rows.base, rows.stride, copied_index(index)};
    }
    std::byte* here = machine_.scratch(static_cast<size_t>(count) * row_bytes);
    if (row_bytes == 0) return {here, 0, nullptr};
    std::byte* packed = machine_.staging(static_cast<size_t>(count) * row_bytes);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(packed + static_cast<size_t>(i) * row_bytes, rows.base + at(i) * rows.stride, row_bytes);
    }
    machine_.copy_in(here, packed, static_cast<size_t>(count) * row_bytes);
    return {here, static_cast<int64_t>(row_bytes), nullptr};
  }

  // Memory of this call alone, and what is in it after the launches so far.
  template <class T>
  T* scratch(int64_t count) {
    return reinterpret_cast<T*>(machine_.scratch(static_cast<size_t>(count) * sizeof(T)));
  }
  template <class T>
  std::vector<T> read(const T* values, int64_t count) {
    std::vector<T> host(static_cast<size_t>(count));
    machine_.copy_out(host.data(), values, host.size() * sizeof(T));
    machine_.wait();
    return host;
  }

  // A copy of what the caller has for a while.
  template <class T>
  const T* copied(std::span<const T> values) {
    const size_t bytes = values.size_bytes();
    std::byte* here = machine_.scratch(bytes);
    if (bytes == 0) return reinterpret_cast<T*>(here);
    std::byte* staged = machine_.staging(bytes);
    std::memcpy(staged, values.data(), bytes);
    machine_.copy_in(here, staged, bytes);
    return reinterpret_cast<T*>(here);
  }

  void copy(const std::byte* from, std::byte* to, size_t bytes) { machine_.copy_on_device(to, from, bytes); }

  template <class Body>
  void elements(int64_t count, const Body& body) {
    if (count == 0) return;
    if constexpr (requires { body.fours(count); }) {
      if (body.fours(count)) return machine_.elements(count / 4, ByFours<Body>{body});
    }
    machine_.elements(count, body);
  }
  template <class Body>
  void blocks(int64_t count, const Body& body, int64_t shared_floats = 0) {
    if (count > 0) machine_.blocks(count, shared_floats, body);
  }

  template <class Shape, class Operand>
  void multiply(const Shape& shape, Operand a, Operand b, float* d) {
    machine_.multiply(shape, a, b, d);
  }
  template <class Product>
  void multiply_grouped(const std::vector<Product>& products) {
    if (!products.empty()) machine_.multiply_grouped(std::span<const Product>(products));
  }

  // Brings home what was written.
  void finish() {
    for (const Home& home : homes_) machine_.copy_out(home.host, home.device, home.bytes);
    if (!homes_.empty()) machine_.wait();
  }

 private:
  struct Home {
    std::byte* host;
    const std::byte* device;
    size_t bytes;
  };

  const int32_t* copied_index(std::span<const int32_t> index) {
    if (index.empty()) return nullptr;
    return in<int32_t>({const_cast<int32_t*>(index.data()), DType::i32, {static_cast<int64_t>(index.size())}});
  }

  std::byte* placed(std::byte* host, size_t bytes, bool read) {
    if (machine_.reaches(host, bytes)) return host;
    if (!read) return machine_.scratch(bytes);
    return const_cast<std::byte*>(copied(std::span<const std::byte>(host, bytes)));
  }

  std::byte* written(const Tensor& tensor, bool read) {
    std::byte* here = placed(tensor.raw(), tensor.bytes(), read);
    if (here != tensor.raw() && tensor.bytes() > 0) homes_.push_back({tensor.raw(), here, tensor.bytes()});
    return here;
  }

  Machine& machine_;
  std::vector<Home> homes_;
};

}  // namespace cadre::gpu
