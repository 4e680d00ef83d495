// SPDX-License-Identifier: Apache-2.0
// Where the ranks of a host post, in shared memory, what the others may read: one notice a transfer. Notices are doubly
// buffered by epoch and published with a release store, so no barrier is needed: a rank that posts epoch n + 1 has read
// epoch n, and whoever has seen that of all peers may post n + 2 over n.
#pragma once

#include <atomic>
#include <cstdint>

#include "comm/base/buffer.hpp"
#include "comm/transport/transport.hpp"

namespace cadre {

// One notice, in place.
class Notice {
 public:
  static constexpr int64_t kByMessage = -1;

  Notice(std::byte* at, int num_ranks) : words_(reinterpret_cast<uint64_t*>(at)), num_ranks_(num_ranks) {}

  // Epoch + 1, stored last, when the rest is in place.
  std::atomic_ref<uint64_t> posted() const { return std::atomic_ref(words_[0]); }
  // Epoch + 1: the rank that posted this has read what it got from the others in that transfer.
  std::atomic_ref<uint64_t> read() const { return std::atomic_ref(words_[1]); }
  // Bytes from the start of the shared memory to element 0; kByMessage: the elements come as messages.
  int64_t& rows() const { return signed_words()[2]; }
  // Element i is index()[i] strides behind the first; without an index i strides.
  int64_t& num_index() const { return signed_words()[3]; }
  int64_t& stride() const { return signed_words()[4]; }
  // [ranks] the first element for each peer.
  int64_t* first() const { return signed_words() + 5; }
  int32_t* index() const { return reinterpret_cast<int32_t*>(first() + num_ranks_); }

  static size_t bytes(int num_ranks, int64_t index_capacity) {
    return whole_cache_lines((5 + static_cast<size_t>(num_ranks)) * sizeof(int64_t) +
                             static_cast<size_t>(index_capacity) * sizeof(int32_t));
  }

 private:
  int64_t* signed_words() const { return reinterpret_cast<int64_t*>(words_); }

  uint64_t* words_;
  int num_ranks_;
};

// The notices of all ranks, at the start of each rank's part of the shared memory.
class Board {
 public:
  static size_t bytes(int num_ranks, int64_t index_capacity) {
    return kNumKinds * kNumEpochs * Notice::bytes(num_ranks, index_capacity);
  }

  Board(const SharedMemory& memory, int num_ranks, int64_t index_capacity)
      : memory_(memory), num_ranks_(num_ranks), index_capacity_(index_capacity) {}

  int64_t index_capacity() const { return index_capacity_; }

  Notice notice(int rank, size_t kind, uint64_t epoch) const {
    const size_t place = kind * kNumEpochs + epoch % kNumEpochs;
    return {memory_.of(rank).data() + place * Notice::bytes(num_ranks_, index_capacity_), num_ranks_};
  }

  static constexpr size_t kNumKinds = 4;
  static constexpr size_t kNumEpochs = 2;

 private:
  const SharedMemory& memory_;
  int num_ranks_;
  int64_t index_capacity_;
};

}  // namespace cadre
