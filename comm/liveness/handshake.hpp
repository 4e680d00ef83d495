// SPDX-License-Identifier: Apache-2.0
// How a process gets its connections: it calls its lower neighbours and is called by its higher ones, all at once, in one
// loop that never blocks on any of them.
//
//   caller   connects      greets             hears the answer, confirms with a byte
//   called           accepts       answers                                         counts the connection
//
// A caller tries the addresses of a peer one after the other, 250 ms apart, and greets on one connection at a time. The
// byte at the end keeps the called side from counting a connection that its caller has given up.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "comm/liveness/contact.hpp"
#include "comm/liveness/link.hpp"

namespace cadre {

class Handshake {
 public:
  using Clock = std::chrono::steady_clock;

  // `contacts` by rank; `neighbours` of `rank`, ascending.
  Handshake(const std::vector<Contact>& contacts, int rank, const std::vector<int>& neighbours, Socket listener);

  // Until all neighbours are connected, or `end`. Returns what failed, naming rank and host; empty when nothing did.
  std::string run(Clock::time_point end);
  // Afterwards: ascending by peer.
  std::vector<Link> take_links();

 private:
  // A connection before it counts.
  struct Attempt {
    enum class Stage { connecting, connected, greeted, answered };
    Socket socket;
    Stage stage = Stage::connecting;
    Clock::time_point begun;
    std::array<std::byte, sizeof(Greeting)> received{};
    size_t num_received = 0;
    int peer = -1;  // answered: who called
  };
  struct Call {
    int peer = -1;
    std::vector<Address> addresses;
    size_t next_address = 0;
    Clock::time_point next_time;
    std::vector<Attempt> attempts;
    Socket linked;
  };

  bool is_complete() const;
  void begin_attempts(Clock::time_point now);
  void advance_call(Call& call, short events, Attempt& attempt);
  void greet_next(Call& call, Clock::time_point now);
  void accept_callers(Clock::time_point now);
  void advance_caller(Attempt& caller);
  void make_room();
  std::string describe_missing() const;
  const Contact& contact(int rank) const { return contacts_[static_cast<size_t>(rank)]; }

  const std::vector<Contact>& contacts_;
  const Secret& secret_;
  int rank_;
  Socket listener_;
  std::vector<Call> calls_;     // to lower neighbours
  std::vector<int> expected_;   // higher neighbours
  std::vector<Socket> linked_;  // of expected_
  std::vector<Attempt> callers_;
  std::string shortage_;  // of descriptors
};

// TCP connections between processes of a job that watch each other, beside MPI: the kernel closes those of a process that
// dies, whatever it died of, and a thread can answer on them while MPI is stuck.

// A process of the job, as messages name it.
struct Member {
  std::string host;
  int64_t pid = 0;
};

// Collective over the job, by the launcher's own channel: the blocks of all ranks, equally long, in the order of ranks.
using GatherBytes = std::function<std::vector<std::byte>(std::span<const std::byte> mine)>;

struct Neighbourhood {
  std::vector<Member> members;  // by rank
  std::vector<Link> links;      // to the neighbours of watch_neighbours(), in its order; none after a failure
  std::string failure;          // the same on all ranks: of the lowest rank that failed; empty: none
};

// Collective; all ranks get their links, or none does. Takes `seconds` at most. Both ends prove that they belong to the job
// by a secret that only `gather` carries; a connection that says nothing, or something else, delays no other. All addresses
// of a host are tried, IPv4 and IPv6.
Neighbourhood connect_neighbours(int rank, int num_ranks, const GatherBytes& gather, double seconds);

}  // namespace cadre
