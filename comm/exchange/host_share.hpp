// SPDX-License-Identifier: Apache-2.0
// Elements of one rank that the other ranks of its host read where they are. Each posts a notice that says where its
// elements lie; whoever has seen it reads them. Elements outside of the shared memory come as messages instead.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "comm/exchange/board.hpp"
#include "comm/exchange/group_exchange.hpp"

namespace cadre {

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
