// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/handshake.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string_view>
#include <utility>

#include "comm/liveness/contact.hpp"
#include "comm/liveness/watch_graph.hpp"

namespace cadre {
namespace {

using namespace std::chrono_literals;

constexpr auto kBetweenAddresses = 250ms;  // RFC 8305, section 8
constexpr auto kHandshakeTime = 2s;        // then another connection to the same peer is tried
constexpr auto kPause = 20ms;
constexpr size_t kMostCallers = 64;  // that have not proved who they are

bool send_all(const Socket& socket, const void* data, size_t size) {
  return send(socket.get(), data, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

bool is_connected(const Socket& socket) {
  int error = 0;
  socklen_t size = sizeof(error);
  return getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

bool is_shortage(int error) { return error == EMFILE || error == ENFILE; }

// Connections need more descriptors than some systems give unless asked.
void allow_descriptors(size_t count) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, count + 256));
  static_cast<void>(setrlimit(RLIMIT_NOFILE, &limit));
}

std::string describe_shortage(int rank, const Contact& contact) {
  rlimit limit{};
  static_cast<void>(getrlimit(RLIMIT_NOFILE, &limit));
  return fmt::format("rank {} on {} has no file descriptor left to connect to others (ulimit -n is {})", rank,
                     contact.host.data(), limit.rlim_cur);
}

}  // namespace

Handshake::Handshake(const std::vector<Contact>& contacts, int rank, const std::vector<int>& neighbours,
                     Socket listener)
    : contacts_(contacts), secret_(contacts.front().secret), rank_(rank), listener_(std::move(listener)) {
  allow_descriptors(neighbours.size() + kMostCallers);
  for (const int peer : neighbours) {
    if (peer > rank_) {
      expected_.push_back(peer);
    } else {
      const bool same_host = std::string_view(contact(peer).host.data()) == contact(rank_).host.data();
      Call& call = calls_.emplace_back();
      call.peer = peer;
      call.addresses = addresses_of(contact(peer), same_host);
    }
  }
  linked_.resize(expected_.size());
}

bool Handshake::is_complete() const {
  return std::ranges::all_of(calls_, [](const Call& call) { return call.linked.is_open(); }) &&
         std::ranges::all_of(linked_, [](const Socket& socket) { return socket.is_open(); });
}

std::string Handshake::run(Clock::time_point end) {
  std::vector<pollfd> descriptors;
  while (!is_complete()) {
    const auto now = Clock::now();
    if (now >= end) return describe_missing();
    begin_attempts(now);
    descriptors.assign(1, {listener_.get(), POLLIN, 0});
    for (const Call& call : calls_) {
      for (const Attempt& attempt : call.attempts) {
        const short events = attempt.stage == Attempt::Stage::connecting ? POLLOUT : POLLIN;
        descriptors.push_back({attempt.socket.get(), events, 0});
      }
    }
    for (const Attempt& caller : callers_) descriptors.push_back({caller.socket.get(), POLLIN, 0});
    static_cast<void>(
        poll(descriptors.data(), descriptors.size(), static_cast<int>(std::chrono::milliseconds(kPause).count())));

    auto descriptor = descriptors.cbegin() + 1;
    for (Call& call : calls_) {
      for (Attempt& attempt : call.attempts) advance_call(call, (descriptor++)->revents, attempt);
      std::erase_if(call.attempts, [](const Attempt& attempt) { return !attempt.socket.is_open(); });
      if (call.linked.is_open()) {
        call.attempts.clear();
      } else {
        greet_next(call, now);
      }
    }
    for (Attempt& caller : callers_) {
      if ((descriptor++)->revents != 0) advance_caller(caller);
    }
    std::erase_if(callers_, [](const Attempt& caller) { return !caller.socket.is_open(); });
    if (descriptors.front().revents != 0) accept_callers(now);
    if (!shortage_.empty()) return shortage_;
  }
  return "";
}

void Handshake::begin_attempts(Clock::time_point now) {
  for (Call& call : calls_) {
    if (call.linked.is_open() || now < call.next_time) continue;
    if (call.next_address == call.addresses.size()) {
      if (!call.attempts.empty()) continue;
      call.next_address = 0;
    }
    call.next_time = now + kBetweenAddresses;
    if (call.addresses.empty()) continue;
    Socket socket = begin_connect(call.addresses[call.next_address], contact(call.peer).port);
    if (socket.is_open()) {
      call.attempts.push_back({.socket = std::move(socket), .begun = now});
    } else if (is_shortage(errno)) {
      make_room();
      continue;
    }
    ++call.next_address;
  }
}

void Handshake::advance_call(Call& call, short events, Attempt& attempt) {
  if (events == 0) return;
  switch (attempt.stage) {
    case Attempt::Stage::connecting:
      if (is_connected(attempt.socket)) {
        attempt.stage = Attempt::Stage::connected;
      } else {
        attempt.socket.close();
      }
      return;
    case Attempt::Stage::greeted: {
      const ssize_t count = recv(attempt.socket.get(), attempt.received.data() + attempt.num_received,
                                 attempt.received.size() - attempt.num_received, 0);
      if (count < 0 && errno == EAGAIN) return;
      if (count <= 0) return attempt.socket.close();
      attempt.num_received += static_cast<size_t>(count);
      if (attempt.num_received < attempt.received.size()) return;
      Greeting answer;
      std::memcpy(&answer, attempt.received.data(), sizeof(answer));
      const std::byte confirmed{1};
      if (answer.from == call.peer && answer.to == rank_ && is_genuine(secret_, answer) &&
          send_all(attempt.socket, &confirmed, sizeof(confirmed))) {
        call.linked = std::move(attempt.socket);
      } else {
        attempt.socket.close();
      }
      return;
    }
    default: return attempt.socket.close();  // the peer does not speak first
  }
}

void Handshake::greet_next(Call& call, Clock::time_point now) {
  for (Attempt& attempt : call.attempts) {
    if (attempt.stage != Attempt::Stage::greeted) continue;
    if (now - attempt.begun < kHandshakeTime) return;
    attempt.socket.close();
  }
  std::erase_if(call.attempts, [](const Attempt& attempt) { return !attempt.socket.is_open(); });
  for (Attempt& attempt : call.attempts) {
    if (attempt.stage != Attempt::Stage::connected) continue;
    const Greeting greeting = make_greeting(secret_, rank_, call.peer);
    if (!send_all(attempt.socket, &greeting, sizeof(greeting))) continue;  // recv will tell that it is broken
    attempt.stage = Attempt::Stage::greeted;
    attempt.begun = now;
    return;
  }
}

void Handshake::accept_callers(Clock::time_point now) {
  for (;;) {
    Socket caller(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!caller.is_open()) {
      if (is_shortage(errno)) make_room();
      return;  // what is left in the queue shows in the next poll
    }
    if (callers_.size() == kMostCallers) make_room();
    callers_.push_back({.socket = std::move(caller), .stage = Attempt::Stage::connected, .begun = now});
  }
}

void Handshake::advance_caller(Attempt& caller) {
  if (caller.stage == Attempt::Stage::answered) {
    std::byte confirmed{};
    const ssize_t count = recv(caller.socket.get(), &confirmed, sizeof(confirmed), 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) return caller.socket.close();
    const auto place = std::ranges::lower_bound(expected_, caller.peer) - expected_.begin();
    linked_[static_cast<size_t>(place)] = std::move(caller.socket);
    return caller.socket.close();
  }
  const ssize_t count = recv(caller.socket.get(), caller.received.data() + caller.num_received,
                             caller.received.size() - caller.num_received, 0);
  if (count < 0 && errno == EAGAIN) return;
  if (count <= 0) return caller.socket.close();
  caller.num_received += static_cast<size_t>(count);
  if (caller.num_received < caller.received.size()) return;
  Greeting greeting;
  std::memcpy(&greeting, caller.received.data(), sizeof(greeting));
  const Greeting answer = make_greeting(secret_, rank_, greeting.from);
  if (greeting.to != rank_ || !std::ranges::binary_search(expected_, greeting.from) || !is_genuine(secret_, greeting) ||
      !send_all(caller.socket, &answer, sizeof(answer))) {
    return caller.socket.close();
  }
  caller.stage = Attempt::Stage::answered;
  caller.peer = greeting.from;
}

// The callers that have proved nothing yet give way, the oldest first.
void Handshake::make_room() {
  const auto stranger =
      std::ranges::find_if(callers_, [](const Attempt& caller) { return caller.stage == Attempt::Stage::connected; });
  if (stranger == callers_.end()) {
    shortage_ = describe_shortage(rank_, contact(rank_));
  } else {
    callers_.erase(stranger);
  }
}

std::string Handshake::describe_missing() const {
  const auto name = [this](int rank) { return fmt::format("rank {} on {}", rank, contact(rank).host.data()); };
  for (const Call& call : calls_) {
    if (!call.linked.is_open()) return fmt::format("{} cannot connect to {}", name(rank_), name(call.peer));
  }
  for (size_t i = 0; i < expected_.size(); ++i) {
    if (!linked_[i].is_open()) return fmt::format("{} did not connect to {}", name(expected_[i]), name(rank_));
  }
  return "";
}

std::vector<Link> Handshake::take_links() {
  std::vector<Link> links;
  for (Call& call : calls_) links.emplace_back(call.peer, std::move(call.linked));
  for (size_t i = 0; i < expected_.size(); ++i) links.emplace_back(expected_[i], std::move(linked_[i]));
  return links;
}

namespace {

template <class T>
std::vector<T> gather_values(const GatherBytes& gather, const T& mine, int num_ranks) {
  const std::vector<std::byte> bytes = gather(std::as_bytes(std::span(&mine, 1)));
  std::vector<T> all(static_cast<size_t>(num_ranks));
  std::memcpy(all.data(), bytes.data(), all.size() * sizeof(T));
  return all;
}

using Text = std::array<char, 256>;

Text to_text(const std::string& text) {
  Text fixed{};
  std::copy_n(text.begin(), std::min(text.size(), fixed.size() - 1), fixed.begin());
  return fixed;
}

}  // namespace

Neighbourhood connect_neighbours(int rank, int num_ranks, const GatherBytes& gather, double seconds) {
  uint16_t port = 0;
  Socket listener = listen_anywhere(port);
  const bool listens = listener.is_open();
  const std::vector<Contact> contacts = gather_values(gather, make_contact(port), num_ranks);

  Neighbourhood made;
  for (const Contact& contact : contacts) made.members.push_back({contact.host.data(), contact.pid});
  Handshake handshake(contacts, rank, watch_neighbours(rank, num_ranks), std::move(listener));
  std::string failure =
      fmt::format("rank {} on {} cannot listen on a TCP port", rank, made.members[static_cast<size_t>(rank)].host);
  if (listens) {
    const auto time = std::chrono::duration_cast<Handshake::Clock::duration>(std::chrono::duration<double>(seconds));
    failure = handshake.run(Handshake::Clock::now() + time);
  }
  for (const Text& text : gather_values(gather, to_text(failure), num_ranks)) {
    if (made.failure.empty()) made.failure = text.data();
  }
  if (!made.failure.empty()) return made;
  made.links = handshake.take_links();
  return made;
}

}  // namespace cadre
