// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/clock.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <span>

namespace cadre {
namespace {

constexpr int kRoundTrips = 20;
constexpr int kTag = 1;

class Conversation {
 public:
  Conversation(const Communicator& world, double deadline_seconds)
      : world_(world), deadline_seconds_(deadline_seconds) {}

  void tell(int64_t value, int peer) const {
    Request sent = world_.send(value, peer, kTag);
    wait(sent, deadline_seconds_, kPosition);
  }
  int64_t hear(int peer) const { return wait(world_.receive<int64_t>(peer, kTag), deadline_seconds_, kPosition); }

 private:
  static constexpr Position kPosition = {.phase = "clock offsets"};

  const Communicator& world_;
  double deadline_seconds_;
};

// By rank 0: what `peer` has to add to its clock.
ClockOffset ask(const Conversation& conversation, int peer, const std::function<int64_t()>& clock_ns) {
  int64_t shortest = std::numeric_limits<int64_t>::max();
  ClockOffset best;
  for (int i = 0; i < kRoundTrips; ++i) {
    const int64_t asked = clock_ns();
    conversation.tell(i, peer);
    const int64_t there = conversation.hear(peer);
    const int64_t answered = clock_ns();
    if (answered - asked >= shortest) continue;
    shortest = answered - asked;
    best = {.at_ns = there, .offset_ns = asked + shortest / 2 - there, .error_ns = (shortest + 1) / 2};
  }
  return best;
}

}  // namespace

int64_t ClockOffsets::error_ns() const { return std::max(begin.error_ns, end.error_ns); }

ClockOffset measure_clock_offset(const Communicator& world, double deadline_seconds,
                                 const std::function<int64_t()>& clock_ns) {
  const Conversation conversation(world, deadline_seconds);
  if (world.rank() == 0) {
    for (int peer = 1; peer < world.size(); ++peer) {
      const ClockOffset found = ask(conversation, peer, clock_ns);
      for (const int64_t value : {found.at_ns, found.offset_ns, found.error_ns}) conversation.tell(value, peer);
    }
    return {.at_ns = clock_ns()};
  }
  for (int i = 0; i < kRoundTrips; ++i) {
    conversation.hear(0);
    conversation.tell(clock_ns(), 0);
  }
  ClockOffset mine;
  for (int64_t* value : {&mine.at_ns, &mine.offset_ns, &mine.error_ns}) *value = conversation.hear(0);
  if (std::abs(mine.offset_ns) <= mine.error_ns) mine.offset_ns = 0;
  return mine;
}

int64_t on_clock_of_rank_0(const ClockOffsets& offsets, int64_t ns) {
  const auto& [begin, end] = offsets;
  const int64_t length = end.at_ns - begin.at_ns;
  if (length <= 0) return ns + begin.offset_ns;
  const int64_t within = std::clamp(ns - begin.at_ns, int64_t{0}, length);
  const double share = static_cast<double>(within) / static_cast<double>(length);
  const double drift = share * static_cast<double>(end.offset_ns - begin.offset_ns);
  return ns + begin.offset_ns + static_cast<int64_t>(drift);
}

}  // namespace cadre
