// SPDX-License-Identifier: Apache-2.0
// Elements of one rank that the other ranks of its host read in place. Each rank posts a notice that says where its
// elements lie: one notice per transfer, in shared memory. Notices are doubly buffered by epoch and published with a
// release store, so no barrier is needed: a rank that posts epoch n + 1 has read epoch n, and a rank that has seen epoch
// n + 1 of all peers may write n + 2 over n. Elements outside of the shared memory come as messages instead.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/group_exchange.hpp"
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

// The memory that the ranks of a host share: a board and then space for elements, alike on every rank.
class HostMemory {
 public:
  // Collective over `host`. Every rank asks for as much.
  HostMemory(const Communicator& host, int64_t index_capacity, size_t space_bytes);

  const Communicator& host() const { return host_; }
  const Board& board() const { return board_; }
  const std::byte* base() const { return memory_->base(); }
  size_t bytes() const { return static_cast<size_t>(host_.size()) * memory_->bytes_per_rank(); }  // of all ranks
  std::span<std::byte> space() const { return memory_->of(host_.rank()).subspan(board_bytes_); }
  bool holds(const std::byte* element) const;

  uint64_t next_epoch(size_t kind) { return epochs_[kind]++; }

 private:
  const Communicator& host_;
  size_t board_bytes_;
  std::unique_ptr<SharedMemory> memory_;
  Board board_;
  uint64_t epochs_[Board::kNumKinds] = {};
};

// One such sharing, between all ranks of the host. Of each kind one is under way at a time.
class HostShare {
 public:
  HostShare(HostMemory& memory, BufferPool& pool, size_t kind, size_t element_bytes);
  ~HostShare();
  HostShare(const HostShare&) = delete;
  HostShare& operator=(const HostShare&) = delete;

  // Peer p gets elements offsets[p] .. offsets[p+1]. They must stay as they are until all peers have read them.
  void offer(const Elements& elements, std::span<const int64_t> offsets);
  void post();
  // Complete when counts[p] elements of every peer p can be read. To be called once, after post().
  Request arrival(std::vector<int64_t> counts);

  uint64_t epoch() const { return epoch_; }

  // Element i of those that peer p offers to this rank.
  const std::byte* at(int peer, int64_t i) const;

  // This rank has read all it wanted. Complete when all peers say so.
  Request release() const;

 private:
  class Arrival;

  Notice notice_of(int peer) const { return memory_.board().notice(peer, kind_, epoch_); }
  void say_read() const;
  bool comes_by_message(int peer) const;
  void send_messages(std::vector<Request>& messages);
  void receive_messages(std::vector<Request>& messages);
  std::string describe(const char* what) const;

  HostMemory& memory_;
  BufferPool& pool_;
  size_t kind_;
  uint64_t epoch_;
  size_t element_bytes_;
  int me_;
  std::vector<int64_t> out_offsets_;
  std::vector<int64_t> in_counts_, in_offsets_;
  bool messages_under_way_ = false;
  Buffer packed_;    // elements that lay elsewhere, on their way
  Buffer received_;  // elements that came as messages, [in_offsets]
};

// One row of what a transfer unpacks: where it is, and whether it is still as the wire left it.
struct ArrivedRow {
  const std::byte* at;
  bool encoded;
};
// The rows in order: where they are, if that is possible, else decoded into `copies`. Rows that came without a message go
// through the wire's rounding too. `index` must outlive the result.
Elements arrange(const std::vector<ArrivedRow>& rows, const RowFormat& format, BufferPool& pool, Buffer& copies,
                 std::vector<int32_t>& index);

}  // namespace cadre
