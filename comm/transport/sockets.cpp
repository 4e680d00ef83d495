// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/sockets.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <string_view>

#include "comm/transport/wait.hpp"

namespace cadre {
namespace {

using Clock = std::chrono::steady_clock;

// What a rank tells the others through MPI.
struct Contact {
  uint64_t secret = 0;  // that of rank 0 opens every connection, so that no stranger takes part
  int64_t pid = 0;
  uint32_t num_addresses = 0;
  std::array<uint32_t, 8> addresses{};  // IPv4, network byte order
  uint16_t port = 0;
  std::array<char, 74> host{};
};

struct Greeting {
  uint64_t secret;
  int64_t rank;
};

// One descriptor a peer may be more than a process gets unasked.
void allow_descriptors(int count) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, static_cast<rlim_t>(count) + 256));
  static_cast<void>(setrlimit(RLIMIT_NOFILE, &limit));
}

std::vector<uint32_t> own_addresses() {
  std::vector<uint32_t> addresses;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return addresses;
  for (const ifaddrs* each = all; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET) continue;
    if ((each->ifa_flags & IFF_UP) == 0 || (each->ifa_flags & IFF_LOOPBACK) != 0) continue;
    addresses.push_back(reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr.s_addr);
  }
  freeifaddrs(all);
  return addresses;
}

sockaddr_in address_of(uint32_t ip, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ip;
  address.sin_port = port;
  return address;
}

Socket listen_anywhere(uint16_t& port) {
  Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address = address_of(htonl(INADDR_ANY), 0);
  socklen_t size = sizeof(address);
  if (!listener.is_open() || bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener.get(), SOMAXCONN) != 0 ||
      getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return {};
  }
  port = address.sin_port;
  return listener;
}

int milliseconds_until(Clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
  return static_cast<int>(std::max<int64_t>(0, left));
}

bool ready(const Socket& socket, int16_t events, Clock::time_point end) {
  pollfd descriptor{socket.get(), events, 0};
  return poll(&descriptor, 1, milliseconds_until(end)) == 1;
}

bool tell(const Socket& socket, const Greeting& greeting) {
  return send(socket.get(), &greeting, sizeof(greeting), MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof(greeting));
}

std::optional<int> hear(const Socket& socket, uint64_t secret, Clock::time_point end) {
  Greeting greeting{};
  size_t received = 0;
  while (received < sizeof(greeting)) {
    if (!ready(socket, POLLIN, end)) return std::nullopt;
    const ssize_t bytes =
        recv(socket.get(), reinterpret_cast<char*>(&greeting) + received, sizeof(greeting) - received, 0);
    if (bytes <= 0) return std::nullopt;
    received += static_cast<size_t>(bytes);
  }
  if (greeting.secret != secret) return std::nullopt;
  return static_cast<int>(greeting.rank);
}

// Tells soon when the host at the other end is gone, which closes nothing.
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

// The connection of this rank to `peer`, which listens; empty where no address of it answers.
Socket connect_to(const Contact& contact, bool same_host, const Greeting& greeting, int peer, Clock::time_point end) {
  std::vector<uint32_t> addresses(contact.addresses.begin(), contact.addresses.begin() + contact.num_addresses);
  if (same_host) addresses.insert(addresses.begin(), htonl(INADDR_LOOPBACK));
  for (const uint32_t ip : addresses) {
    Socket attempt(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const sockaddr_in address = address_of(ip, contact.port);
    if (!attempt.is_open()) continue;
    if (connect(attempt.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
        errno != EINPROGRESS) {
      continue;
    }
    int error = 0;
    socklen_t size = sizeof(error);
    if (!ready(attempt, POLLOUT, end) || getsockopt(attempt.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 ||
        error != 0) {
      continue;
    }
    if (tell(attempt, greeting) && hear(attempt, greeting.secret, end) == peer) return attempt;
  }
  return {};
}

// Takes the connections of all ranks above this one. False when one does not come in time.
bool accept_all(const Socket& listener, const Greeting& greeting, std::vector<Peer>& peers, Clock::time_point end) {
  for (auto missing = static_cast<int64_t>(peers.size()) - 1 - greeting.rank; missing > 0;) {
    if (!ready(listener, POLLIN, end)) return false;
    Socket caller(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!caller.is_open()) continue;
    const std::optional<int> rank = hear(caller, greeting.secret, end);
    if (!rank || *rank <= greeting.rank || *rank >= static_cast<int>(peers.size())) continue;
    if (!tell(caller, greeting)) return false;
    peers[static_cast<size_t>(*rank)].socket = std::move(caller);
    --missing;
  }
  return true;
}

Contact make_contact(uint16_t port) {
  Contact contact;
  std::random_device random;
  contact.secret = uint64_t{random()} << 32 | random();
  contact.pid = getpid();
  contact.port = port;
  static_cast<void>(gethostname(contact.host.data(), contact.host.size() - 1));
  const std::vector<uint32_t> addresses = own_addresses();
  contact.num_addresses = static_cast<uint32_t>(std::min(addresses.size(), contact.addresses.size()));
  std::copy_n(addresses.begin(), contact.num_addresses, contact.addresses.begin());
  return contact;
}

std::string connect_peers(const Socket& listener, const std::vector<Contact>& contacts, int rank,
                          std::vector<Peer>& peers, double seconds) {
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const auto& mine = contacts[static_cast<size_t>(rank)];
  const Greeting greeting{contacts.front().secret, rank};
  for (int peer = 0; peer < rank; ++peer) {
    const Contact& contact = contacts[static_cast<size_t>(peer)];
    const bool same_host = std::string_view(contact.host.data()) == mine.host.data();
    peers[static_cast<size_t>(peer)].socket = connect_to(contact, same_host, greeting, peer, end);
    if (!peers[static_cast<size_t>(peer)].socket.is_open()) {
      return fmt::format("rank {} on {} cannot connect to rank {} on {}", rank, mine.host.data(), peer,
                         contact.host.data());
    }
  }
  if (!accept_all(listener, greeting, peers, end)) {
    return fmt::format("a rank did not connect to rank {} on {}", rank, mine.host.data());
  }
  return "";
}

}  // namespace

Socket::~Socket() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Connected connect_all(Transport& world, double seconds) {
  allow_descriptors(world.size());
  uint16_t port = 0;
  const Socket listener = listen_anywhere(port);
  const Contact mine = make_contact(port);
  std::vector<Contact> contacts(static_cast<size_t>(world.size()));
  Request gathered = world.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(contacts)));
  wait(gathered);

  Connected connected;
  connected.peers.resize(contacts.size());
  connected.why_not = listener.is_open() ? connect_peers(listener, contacts, world.rank(), connected.peers, seconds)
                                         : fmt::format("rank {} on {} cannot listen", world.rank(), mine.host.data());
  int32_t failed = connected.why_not.empty() ? 0 : 1;
  Request agreed = world.all_reduce(reinterpret_cast<std::byte*>(&failed), 1, DType::i32, ReduceOp::max);
  wait(agreed);
  if (failed != 0) {
    if (connected.why_not.empty()) connected.why_not = "other ranks could not connect";
    connected.peers.clear();
    return connected;
  }
  for (size_t rank = 0; rank < contacts.size(); ++rank) {
    Peer& peer = connected.peers[rank];
    peer.host = contacts[rank].host.data();
    peer.pid = contacts[rank].pid;
    if (peer.socket.is_open()) keep_alive(peer.socket);
  }
  return connected;
}

}  // namespace cadre
