// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "comm/liveness/frame.hpp"
#include "comm/liveness/socket.hpp"

namespace cadre {

// A connection to a neighbour. Never blocks: frames are queued, and go out as far as the kernel takes them.
class Link {
 public:
  // `socket` does not block.
  Link(int peer, Socket socket) : peer_(peer), socket_(std::move(socket)) {}

  int peer() const { return peer_; }
  int descriptor() const { return socket_.get(); }
  bool is_open() const { return socket_.is_open(); }
  void close() { socket_.close(); }
  bool has_unsent() const { return is_open() && sent_ < unsent_.size(); }

  // A peer that is stopped takes nothing. Its queue then holds no more questions and answers than fit 1 MiB; what must
  // arrive is queued always, and is a few frames for each rank of the job.
  void queue(const Frame& frame);
  // Sends what goes without blocking. A broken connection shows in receive().
  void flush();
  // Appends the whole frames that came. False once the peer closed the connection, or sent what is no frame of a job of
  // `num_ranks`.
  bool receive(std::vector<Frame>& frames, int num_ranks);

 private:
  int peer_;
  Socket socket_;
  std::vector<std::byte> unread_;
  std::vector<std::byte> unsent_;
  size_t sent_ = 0;  // bytes of unsent_
};

}  // namespace cadre
