// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/connect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "comm/liveness/contact.hpp"
#include "comm/liveness/handshake.hpp"
#include "comm/liveness/watch_graph.hpp"

namespace cadre {
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
