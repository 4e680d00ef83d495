// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/contact.hpp"

#include <Random123/threefry.h>
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "comm/base/host_name.hpp"

namespace cadre {
namespace {

Address from_socket_address(const sockaddr& any) {
  Address address;
  address.family = any.sa_family;
  if (any.sa_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(any);
    std::memcpy(address.bytes.data(), &in.sin_addr, sizeof(in.sin_addr));
  } else {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(any);
    std::memcpy(address.bytes.data(), &in.sin6_addr, sizeof(in.sin6_addr));
  }
  return address;
}

// Link-local addresses need the name of an interface of the other host, so they are left out.
bool reaches_other_hosts(const ifaddrs& interface) {
  if (interface.ifa_addr == nullptr || (interface.ifa_flags & IFF_UP) == 0 || (interface.ifa_flags & IFF_LOOPBACK) != 0)
    return false;
  if (interface.ifa_addr->sa_family == AF_INET) return true;
  return interface.ifa_addr->sa_family == AF_INET6 &&
         !IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(interface.ifa_addr)->sin6_addr);
}

// IPv4 first: it is what most clusters route.
std::vector<Address> own_addresses() {
  std::vector<Address> addresses;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return addresses;
  for (const ifaddrs* each = all; each != nullptr; each = each->ifa_next) {
    if (reaches_other_hosts(*each)) addresses.push_back(from_socket_address(*each->ifa_addr));
  }
  freeifaddrs(all);
  std::ranges::stable_partition(addresses, [](const Address& address) { return address.family == AF_INET; });
  return addresses;
}

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

SocketAddress to_socket_address(const Address& address, uint16_t port) {
  SocketAddress made;
  if (address.family == AF_INET) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = port;
    std::memcpy(&in.sin_addr, address.bytes.data(), sizeof(in.sin_addr));
    std::memcpy(&made.storage, &in, sizeof(in));
    made.size = sizeof(in);
  } else {
    sockaddr_in6 in{};
    in.sin6_family = AF_INET6;
    in.sin6_port = port;
    std::memcpy(&in.sin6_addr, address.bytes.data(), sizeof(in.sin6_addr));
    std::memcpy(&made.storage, &in, sizeof(in));
    made.size = sizeof(in);
  }
  return made;
}

Socket listen_on(const Address& any, uint16_t& port) {
  Socket listener(socket(any.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.is_open()) return {};
  if (any.family == AF_INET6) {
    constexpr int kOff = 0;  // IPv4, too
    if (setsockopt(listener.get(), IPPROTO_IPV6, IPV6_V6ONLY, &kOff, sizeof(kOff)) != 0) return {};
  }
  SocketAddress address = to_socket_address(any, 0);
  if (bind(listener.get(), address.get(), address.size) != 0 || listen(listener.get(), SOMAXCONN) != 0 ||
      getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.size) != 0) {
    return {};
  }
  // At the same place in both kinds of addresses.
  port = reinterpret_cast<const sockaddr_in&>(address.storage).sin_port;
  return listener;
}

}  // namespace

Contact make_contact(uint16_t port) {
  Contact contact;
  std::random_device random;
  for (uint64_t& word : contact.secret) word = uint64_t{random()} << 32 | random();
  contact.pid = getpid();
  contact.port = port;
  host_name().copy(contact.host.data(), contact.host.size() - 1);
  const std::vector<Address> addresses = own_addresses();
  contact.num_addresses = static_cast<uint32_t>(std::min(addresses.size(), contact.addresses.size()));
  std::copy_n(addresses.begin(), contact.num_addresses, contact.addresses.begin());
  return contact;
}

std::vector<Address> addresses_of(const Contact& contact, bool same_host) {
  std::vector<Address> addresses;
  if (same_host) {
    const Address loopback{.family = AF_INET, .bytes = {127, 0, 0, 1}};
    Address loopback6{.family = AF_INET6};
    loopback6.bytes.back() = 1;
    addresses = {loopback, loopback6};
  }
  addresses.insert(addresses.end(), contact.addresses.begin(), contact.addresses.begin() + contact.num_addresses);
  return addresses;
}

Greeting make_greeting(const Secret& secret, int from, int to) {
  const r123::Threefry4x64::ctr_type pair = {{static_cast<uint64_t>(from), static_cast<uint64_t>(to)}};
  const r123::Threefry4x64::ukey_type key = {{secret[0], secret[1], secret[2], secret[3]}};
  const auto proof = r123::Threefry4x64()(pair, key);
  return {from, to, {proof[0], proof[1], proof[2], proof[3]}};
}

bool is_genuine(const Secret& secret, const Greeting& greeting) {
  return greeting.proof == make_greeting(secret, greeting.from, greeting.to).proof;
}

Socket listen_anywhere(uint16_t& port) {
  Socket both = listen_on({.family = AF_INET6}, port);
  return both.is_open() ? std::move(both) : listen_on({.family = AF_INET}, port);
}

Socket begin_connect(const Address& address, uint16_t port) {
  Socket attempt(socket(address.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!attempt.is_open()) return {};
  const SocketAddress to = to_socket_address(address, port);
  if (connect(attempt.get(), to.get(), to.size) != 0 && errno != EINPROGRESS) return {};
  return attempt;
}

void keep_alive(const Socket& socket) {
  constexpr int kOn = 1;
  constexpr int kSeconds = 5;
  constexpr int kProbes = 3;
  static_cast<void>(setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &kOn, sizeof(kOn)));
  static_cast<void>(setsockopt(socket.get(), IPPROTO_TCP, TCP_KEEPIDLE, &kSeconds, sizeof(kSeconds)));
  static_cast<void>(setsockopt(socket.get(), IPPROTO_TCP, TCP_KEEPINTVL, &kSeconds, sizeof(kSeconds)));
  static_cast<void>(setsockopt(socket.get(), IPPROTO_TCP, TCP_KEEPCNT, &kProbes, sizeof(kProbes)));
  static_cast<void>(setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &kOn, sizeof(kOn)));
}

}  // namespace cadre
