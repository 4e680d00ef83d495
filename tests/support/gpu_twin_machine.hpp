// SPDX-License-Identifier: Apache-2.0
// A Machine (layers/kernels/gpu/call.hpp) on the host that delays its work: it queues each operation and runs it when a
// caller waits, sometimes earlier, so that a read without a wait finds the old values.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/job/request.hpp"
#include "layers/kernels/gpu/fp8.hpp"
#include "layers/kernels/gpu/multiply.hpp"
#include "layers/kernels/gpu/staging.hpp"
#include "tests/support/closed_memory.hpp"
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
  TwinBlock(TwinOrder order, int threads, int64_t index, float* shared)
      : order_(order), threads_(threads), index_(index), shared_(shared) {}

  int64_t index() const { return index_; }
  float* shared() const { return shared_; }

  template <class F>
  void each(int64_t count, const F& f) {
    in_order(order_, count, f);
  }

  // As on a device: thread t joins elements t, t + threads, ..., in a warp halves join each other, then warps are joined.
  template <class T, class F, class Join>
  T reduce(int64_t count, T zero, const F& f, const Join& join) {
    std::vector<T> partial(static_cast<size_t>(threads_), zero);
    in_order(order_, threads_, [&](int64_t thread) {
      T& mine = partial[static_cast<size_t>(thread)];
      for (int64_t i = thread; i < count; i += threads_) mine = join(mine, f(i));
    });
    for (size_t warp = 0; warp < partial.size(); warp += gpu::kWarp) {
      for (size_t half = gpu::kWarp / 2; half > 0; half /= 2) {
        for (size_t i = warp; i < warp + half; ++i) partial[i] = join(partial[i], partial[i + half]);
      }
    }
    for (size_t warp = gpu::kWarp; warp < partial.size(); warp += gpu::kWarp) {
      partial[0] = join(partial[0], partial[warp]);
    }
    return partial[0];
  }

 private:
  TwinOrder order_;
  int64_t threads_;
  int64_t index_;
  float* shared_;
};

// What the machine has been told and not yet done. While it works its memory is open.
class TwinQueue {
 public:
  using Mark = uint64_t;

  explicit TwinQueue(ClosedMemory* closed = nullptr) : closed_(closed) {}

  void push(std::function<void()> work) {
    waiting_.push_back(std::move(work));
    if (draw() % 64 == 0) run(draw() % 16);
  }
  Mark mark() const { return num_done_ + waiting_.size(); }
  bool is_past(Mark mark) const { return num_done_ >= mark; }
  void wait_for(Mark mark) {
    if (!is_past(mark)) run(mark - num_done_);
  }
  // Goes on by some of it.
  void run_some() { run(1 + draw() % 8); }

 private:
  void run(uint64_t count) {
    if (count == 0 || waiting_.empty()) return;
    const ClosedMemory::Opening opening(closed_);
    for (; count > 0 && !waiting_.empty(); --count) {
      const std::function<void()> work = std::move(waiting_.front());
      waiting_.pop_front();
      work();
      ++num_done_;
    }
  }
  uint64_t draw() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return state_ >> 33;
  }

  ClosedMemory* closed_;
  std::deque<std::function<void()>> waiting_;
  Mark num_done_ = 0;
  uint64_t state_ = 1;
};

// Complete when the queue has come to its mark.
class TwinLaunched final : public PendingOperation {
 public:
  explicit TwinLaunched(TwinQueue& queue) : queue_(queue), mark_(queue.mark()) {}
  bool test() override {
    if (!queue_.is_past(mark_)) queue_.run_some();
    return queue_.is_past(mark_);
  }
  std::string missing() const override { return "the twin itself"; }

 private:
  TwinQueue& queue_;
  TwinQueue::Mark mark_;
};

// Starts when the queue comes there, and runs it out.
class TwinClock final : public DeviceClock {
 public:
  explicit TwinClock(TwinQueue& queue) : queue_(queue) {}
  void start() override {
    queue_.push([clock = clock_] { clock->start(); });
  }
  double stop_ms() override {
    queue_.wait_for(queue_.mark());
    return clock_->stop_ms();
  }

 private:
  TwinQueue& queue_;
  std::shared_ptr<DeviceClock> clock_ = make_host_clock();
};

// Memory that knows what it handed out, and what of all memory kernels reach. `closed`: where it comes from, and the host
// does not reach it; else from the host.
class OwnMemory final : public Memory {
 public:
  OwnMemory(TwinQueue& queue, TwinMemory reached, gpu::AddressRanges& ranges, Memory* results = nullptr,
            ClosedMemory* closed = nullptr)
      : queue_(queue), reached_(reached), ranges_(ranges), results_(results), closed_(closed) {}
  std::byte* allocate(size_t bytes) override {
    std::byte* data = closed_ == nullptr ? host_memory().allocate(bytes) : closed_->allocate(bytes);
    ranges_.add(data, bytes);
    return data;
  }
  void release(std::byte* data) noexcept override {
    synchronize();
    ranges_.remove(data);
    closed_ == nullptr ? host_memory().release(data) : closed_->release(data);
  }
  void fill(std::byte* data, std::byte value, size_t bytes) override {
    if (!reaches(data, bytes)) return Memory::fill(data, value, bytes);
    queue_.push([=, this] { Memory::fill(data, value, bytes); });
  }
  void synchronize() override { queue_.wait_for(queue_.mark()); }
  bool is_on_host() const override { return closed_ == nullptr; }
  void read(std::byte* to, const std::byte* from, size_t bytes) override {
    Memory::read(to, ClosedMemory::open(from), bytes);
  }
  void write(std::byte* to, const std::byte* from, size_t bytes) override {
    Memory::write(ClosedMemory::open(to), from, bytes);
  }
  Memory& for_results() override { return results_ == nullptr ? *this : *results_; }
  bool reaches(const void* data, size_t bytes) const {
    return reached_ == TwinMemory::reached || (reached_ == TwinMemory::own && ranges_.contain(data, bytes));
  }

 private:
  TwinQueue& queue_;
  TwinMemory reached_;
  gpu::AddressRanges& ranges_;
  Memory* results_;
  ClosedMemory* closed_;
};

class TwinMachine {
 public:
  TwinMachine(TwinOrder order, TwinMemory reached, TwinFp8 fp8 = TwinFp8::rounded)
      : order_(order),
        fp8_(fp8),
        closed_(reached == TwinMemory::own ? std::make_unique<ClosedMemory>() : nullptr),
        queue_(closed_.get()),
        results_(queue_, reached, ranges_),
        messages_(queue_, reached, ranges_),
        own_(queue_, reached, ranges_, &results_, closed_.get()) {}

  bool reaches(const void* data, size_t bytes) const { return own_.reaches(data, bytes); }

  // Each piece is an allocation of its own, so that the address sanitizer sees a step beyond it; what nobody wrote is NaN.
  std::byte* scratch(size_t bytes) {
    return scratch_->emplace_back(std::max<size_t>(bytes, 1), std::byte{0xff}).data();
  }
  std::byte* staging(size_t bytes) { return staging_.take(queue_, bytes); }
  void copy_in(std::byte* device, const std::byte* staged, size_t bytes) {
    push([=] { std::memcpy(device, staged, bytes); });
  }
  void copy_out(void* host, const void* device, size_t bytes) {
    push([=] {
      if (bytes > 0) std::memcpy(host, device, bytes);
    });
  }

  void copy_on_device(std::byte* to, const std::byte* from, size_t bytes) {
    push([=] { std::memcpy(to, from, bytes); });
  }
  std::unique_ptr<DeviceClock> make_clock() { return std::make_unique<TwinClock>(queue_); }

  template <class Body>
  void elements(int64_t count, const Body& body) {
    push([=, this] { in_order(order_, count, body); });
  }
  template <class Body>
  void blocks(int64_t count, int64_t shared_floats, const Body& body) {
    if (shared_floats > gpu::kSharedFloats) throw std::runtime_error("more shared memory than a GPU block has");
    push([=, this] {
      in_order(order_, count, [&](int64_t index) {
        std::vector<float> shared(static_cast<size_t>(shared_floats), std::numeric_limits<float>::quiet_NaN());
        TwinBlock block(order_, gpu::num_threads(body), index, shared.data());
        body(block);
      });
    });
  }

  bool multiplies_fp8() const { return fp8_ == TwinFp8::multiplied; }
  // As cuBLASLt is told to.
  template <class Operand>
  void multiply(const gpu::ProductShape& shape, Operand a, Operand b, float* d) {
    check(shape, a, b, d);
    push([=, this] { multiply_now(shape, a, b, d); });
  }
  template <class Operand>
  void multiply_grouped(std::span<const gpu::Product<Operand>> products) {
    for (const auto& [shape, a, b, d] : products) check(shape, a, b, d);
    push([this, products = std::vector(products.begin(), products.end())] {
      in_order(order_, static_cast<int64_t>(products.size()), [&](int64_t i) {
        const gpu::Product<Operand>& product = products[static_cast<size_t>(i)];
        multiply_now(product.shape, product.a, product.b, product.d);
      });
    });
  }

  Memory& memory() { return own_; }
  Memory& message_memory() { return messages_; }
  void begin() {
    if (!scratch_->empty()) scratch_ = std::make_shared<Scratch>();
  }
  Request launched() {
    Request request("kernels", std::make_unique<TwinLaunched>(queue_));
    request.hide();  // no bytes travel
    return request;
  }
  void wait() { queue_.wait_for(queue_.mark()); }
  void* queue() { return &queue_; }  // for a FollowingTransport

 protected:
  // The scratch memory of a call lives as long as what it is for.
  template <class Work>
  void push(Work work) {
    queue_.push([work = std::move(work), held = scratch_] { work(); });
  }

 private:
  using Scratch = std::deque<std::vector<std::byte>>;

  using Stored = gpu::ColumnMajorProduct::Stored;

  template <class T>
  static void check(const gpu::ProductShape&, const T*, const T*, const float*) {}
  // What cuBLASLt refuses.
  static void check(const gpu::ProductShape& shape, const gpu::Fp8Matrix& a, const gpu::Fp8Matrix& b, const float* d) {
    const auto is_multiple = [](int64_t count) { return count > 0 && count % gpu::kFp8Multiple == 0; };
    const auto is_aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
    const gpu::ColumnMajorProduct product = gpu::in_column_major(shape);
    const bool has_product = product.first.transposed && !product.second.transposed && is_multiple(shape.rows) &&
                             is_multiple(shape.columns) && is_multiple(shape.inner) && is_aligned(a.codes) &&
                             is_aligned(a.scales) && is_aligned(b.codes) && is_aligned(b.scales) && is_aligned(d) &&
                             (a.scaling == gpu::Fp8Scaling::tiles || b.scaling == gpu::Fp8Scaling::tiles);
    if (!has_product) throw std::runtime_error("cuBLASLt has no such product of fp8");
  }

  // Of op(the stored matrix).
  template <class T>
  static double element(const T* matrix, const Stored& stored, int64_t row, int64_t column) {
    return double{gpu::load(matrix[stored.transposed ? row * stored.leading + column : column * stored.leading + row])};
  }
  // Codes and scales of columns along which is summed, as cuBLAS documents them: of "VEC128" with the outer axis fastest,
  // of "BLK128x128" with the inner one and a stride that is a multiple of 4.
  static double element(const gpu::Fp8Matrix& matrix, const Stored& stored, int64_t row, int64_t column) {
    const int64_t inner = stored.transposed ? column : row;
    const int64_t outer = stored.transposed ? row : column;
    const int64_t padded_tiles = (stored.rows + 511) / 512 * 4;
    const int64_t scale = matrix.scaling == gpu::Fp8Scaling::tiles ? inner / 128 * stored.columns + outer
                                                                   : outer / 128 * padded_tiles + inner / 128;
    return double{from_fp8(matrix.codes[outer * stored.rows + inner])} * double{matrix.scales[scale]};
  }

  template <class T>
  static const T* matrix(const T* first, const Stored& stored, int64_t i) {
    return first + i * stored.step;
  }
  static gpu::Fp8Matrix matrix(const gpu::Fp8Matrix& first, const Stored&, int64_t) { return first; }

  template <class Operand>
  void multiply_now(const gpu::ProductShape& shape, Operand a, Operand b, float* d) const {
    const gpu::ColumnMajorProduct product = gpu::in_column_major(shape);
    in_order(order_, shape.count * product.result.columns, [&](int64_t i) {
      const int64_t of = i / product.result.columns;
      const int64_t column = i % product.result.columns;
      const Operand first = matrix(b, product.first, of);
      const Operand second = matrix(a, product.second, of);
      float* const results = d + of * product.result.step + column * product.result.leading;
      for (int64_t row = 0; row < product.result.rows; ++row) {
        double sum = shape.accumulate == Accumulate::yes ? double{results[row]} : 0.0;
        for (int64_t k = 0; k < shape.inner; ++k) {
          sum += element(first, product.first, row, k) * element(second, product.second, k, column);
        }
        results[row] = static_cast<float>(sum);
      }
    });
  }

  TwinOrder order_;
  TwinFp8 fp8_;
  std::unique_ptr<ClosedMemory> closed_;
  TwinQueue queue_;
  gpu::AddressRanges ranges_;
  OwnMemory results_;
  OwnMemory messages_;
  OwnMemory own_;
  gpu::Staging<TwinQueue::Mark> staging_{host_memory(), size_t{8} << 10, 3};  // small, so that it comes round
  std::shared_ptr<Scratch> scratch_ = std::make_shared<Scratch>();
};

}  // namespace cadre::test
