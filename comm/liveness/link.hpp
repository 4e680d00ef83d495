// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace cadre {

// What processes of a job send each other beside MPI. Every frame has the same size, so a connection needs no lengths.

struct Frame {
  // All but `answer` flood: each process applies the first copy that it receives and forwards it to its other neighbours.
  enum class Kind : uint32_t {
    question,  // where is everyone?
    answer,    // goes back to `subject`, on the way its question came
    view,      // the set of processes that are gone, as `origin` sees it
    lost,      // `subject` died
    farewell,  // `origin` ends, and that is no death
    job_ends,  // the same, and the launcher ends the job: deaths from here on are not news
    end_job,   // every process ends with `code`
  };
  static constexpr uint32_t kNumKinds = 7;

  Kind kind = Kind::question;
  int32_t origin = 0;   // the rank that made it
  int32_t subject = 0;  // a rank
  int32_t code = 0;
  // Counts the floods of `origin`, from 1; of an answer that of its question.
  uint64_t number = 0;
  uint64_t hash = 0;  // view
  // answer
  int64_t step = -1;
  int64_t nanoseconds = -1;  // at this place; -1: not known
  int32_t micro_batch = -1;
  int32_t layer = -1;
  uint32_t waits = 0;
  std::array<char, 36> phase{};
};
static_assert(std::is_trivially_copyable_v<Frame> && sizeof(Frame) == 96);

// Owns a file descriptor. Move-only.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  void close() { const Socket closed = std::move(*this); }

 private:
  int descriptor_ = -1;
};

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
