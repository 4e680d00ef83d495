// SPDX-License-Identifier: Apache-2.0
// A TCP connection between every two processes of a job, beside MPI: the kernel closes those of a process that dies,
// whatever it died of, and a thread can answer on them while MPI is stuck.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "comm/transport/transport.hpp"

namespace cadre {

// Owns a descriptor. Move-only.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket();

  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  void close() { *this = Socket(); }

 private:
  int descriptor_ = -1;
};

// A process of the job as its peers know it.
struct Peer {
  Socket socket;  // not blocking; none of this process itself
  std::string host;
  int64_t pid = 0;
};

struct Connected {
  std::vector<Peer> peers;  // by rank; empty where not every pair could be connected
  std::string why_not;
};

// Collective over `world`; all ranks get connections, or none does. Takes `seconds` at most for each step.
Connected connect_all(Transport& world, double seconds);

}  // namespace cadre
