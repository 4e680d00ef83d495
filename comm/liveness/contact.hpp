// SPDX-License-Identifier: Apache-2.0
// What processes must know of each other to connect, and how they prove that they belong to the job.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "comm/liveness/link.hpp"

namespace cadre {

using Secret = std::array<uint64_t, 4>;

struct Address {
  uint16_t family = 0;  // AF_INET or AF_INET6
  std::array<uint8_t, 16> bytes{};
};

// Sent by the launcher's channel.
struct Contact {
  static constexpr size_t kMostAddresses = 12;
  Secret secret{};  // that of rank 0 is the job's
  int64_t pid = 0;
  uint32_t num_addresses = 0;
  uint16_t port = 0;  // network byte order
  std::array<Address, kMostAddresses> addresses{};
  std::array<char, 66> host{};
};
static_assert(std::is_trivially_copyable_v<Contact>);

Contact make_contact(uint16_t port);
// Where `contact` may be reached, likeliest first; `same_host`: the loopback address, too.
std::vector<Address> addresses_of(const Contact& contact, bool same_host);

// Both directions of a connection open with one.
struct Greeting {
  int32_t from = 0;
  int32_t to = 0;
  Secret proof{};
};
static_assert(std::is_trivially_copyable_v<Greeting>);

// The proof is a keyed hash of (from, to), so that a stranger who answers at a wrong address learns nothing of the secret.
Greeting make_greeting(const Secret& secret, int from, int to);
bool is_genuine(const Secret& secret, const Greeting& greeting);

// A socket that listens on all addresses, and its port; not open where there is none.
Socket listen_anywhere(uint16_t& port);
// Begins to connect; not open, with errno set, where that fails at once.
Socket begin_connect(const Address& address, uint16_t port);
// Reports within some 20 seconds that the host at the other end is gone, which closes nothing.
void keep_alive(const Socket& socket);

}  // namespace cadre
