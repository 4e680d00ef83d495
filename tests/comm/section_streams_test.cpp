// SPDX-License-Identifier: Apache-2.0
// Streams of sections between ranks: every byte arrives in its place, sections wait until they are ready, and other messages do
// not wait behind them.
#include "comm/group/section_streams.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "comm/base/buffer.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::section_streams_test {
namespace {

constexpr StreamOptions kOptions = {.piece_bytes = 64, .pieces = 4};
constexpr size_t kSections = 4;

std::byte byte_of(int from, int to, size_t part, size_t offset) {
  return static_cast<std::byte>((static_cast<size_t>(from) * 131 + static_cast<size_t>(to) * 31 + part * 7 + offset) %
                                251);
}

// Bytes of each part, others for each pair of ranks; section 1 is empty, one part ends with a piece, one is longer than all
// pieces under way.
struct PartSize {
  size_t section;
  size_t bytes;
};
std::vector<PartSize> parts_of(int from, int to) {
  const auto pair = static_cast<size_t>(from * 5 + to);
  return {{0, 100 + pair}, {0, 3}, {1, 0}, {2, 64 * (1 + pair % 3)}, {3, 64 * (8 + pair) + 1}, {3, 1}};
}

// Rank 1 sends nothing.
bool sends(int from, int to) { return from != to && from != 1; }

struct Streams {
  std::vector<OutgoingStream> out;
  std::vector<IncomingStream> in;
  std::shared_ptr<std::vector<Buffer>> memory = std::make_shared<std::vector<Buffer>>();
};

Streams make_streams(const Communicator& world, const size_t& num_ready) {
  Streams streams;
  const int me = world.rank();
  const auto buffer = [&](size_t bytes) {
    streams.memory->emplace_back(bytes);
    return streams.memory->back().span();
  };
  for (int peer = 0; peer < world.size(); ++peer) {
    if (sends(me, peer)) {
      OutgoingStream& stream = streams.out.emplace_back();
      stream.peer = peer;
      stream.is_ready = [&num_ready](size_t section) { return section < num_ready; };
      for (const auto& [section, bytes] : parts_of(me, peer)) {
        const std::span<std::byte> part = buffer(bytes);
        for (size_t i = 0; i < bytes; ++i) part[i] = byte_of(me, peer, stream.parts.size(), i);
        stream.parts.push_back({part, section});
      }
    }
    if (sends(peer, me)) {
      IncomingStream& stream = streams.in.emplace_back();
      stream.peer = peer;
      for (const PartSize& part : parts_of(peer, me)) {
        stream.parts.push_back(buffer(part.bytes));
        std::ranges::fill(stream.parts.back(), std::byte{255});
      }
    }
  }
  return streams;
}

// Of the first sections; nothing of the others.
void expect_arrived(const Communicator& world, const Streams& streams, size_t num_sections) {
  for (const IncomingStream& stream : streams.in) {
    for (size_t part = 0; part < stream.parts.size(); ++part) {
      const bool here = parts_of(stream.peer, world.rank())[part].section < num_sections;
      for (size_t i = 0; i < stream.parts[part].size(); ++i) {
        ASSERT_EQ(stream.parts[part][i], here ? byte_of(stream.peer, world.rank(), part, i) : std::byte{255})
            << "from " << stream.peer << " part " << part << " byte " << i;
      }
    }
  }
}

Request start(const Communicator& group, const Streams& streams) {
  return exchange_streams(group, streams.out, streams.in, host_memory(), streams.memory, kOptions);
}

TEST(SectionStreams, every_byte_arrives_in_its_place) {
  test::on_ranks([](Communicator& world) {
    const size_t num_ready = kSections;
    Streams streams = make_streams(world, num_ready);
    Request request = start(world, streams);
    wait(request);
    expect_arrived(world, streams, kSections);
  });
}

TEST(SectionStreams, a_section_waits_until_it_is_ready_and_others_do_not_wait_for_it) {
  test::on_ranks([](Communicator& world) {
    const Communicator own = world.duplicate("streams");
    size_t num_ready = 0;
    Streams streams = make_streams(own, num_ready);
    Request request = start(own, streams);
    const bool has_any = !streams.in.empty() || !streams.out.empty();
    for (num_ready = 0; num_ready < kSections; ++num_ready) {
      // A sum on another group ends meanwhile.
      Pending<int64_t> sum = world.all_reduce(int64_t{1}, ReduceOp::sum);
      while (!sum.request().test()) EXPECT_TRUE(!request.test() || !has_any);
      for (int i = 0; i < 100; ++i) EXPECT_TRUE(!request.test() || !has_any);
      wait(world.all_reduce(int64_t{1}, ReduceOp::sum));
      for (const IncomingStream& stream : streams.in) {
        for (size_t part = 0; part < stream.parts.size(); ++part) {
          if (parts_of(stream.peer, world.rank())[part].section < num_ready) continue;
          EXPECT_TRUE(std::ranges::all_of(stream.parts[part], [](std::byte byte) { return byte == std::byte{255}; }));
        }
      }
      wait(world.all_reduce(int64_t{1}, ReduceOp::sum));  // all ranks have looked before one makes more ready
    }
    wait(request);
    expect_arrived(own, streams, kSections);
  });
}

// One that is given up keeps its memory, and the ranks go on.
TEST(SectionStreams, one_that_is_given_up_harms_nobody) {
  test::on_ranks([](Communicator& world) {
    {
      const Communicator own = world.duplicate("streams");
      const size_t num_ready = 3;
      Streams streams = make_streams(own, num_ready);
      Request request = start(own, streams);
      for (int i = 0; i < 10; ++i) static_cast<void>(request.test());
    }
    EXPECT_EQ(wait(world.all_reduce(int64_t{1}, ReduceOp::sum)), world.size());
  });
}

}  // namespace
}  // namespace cadre::section_streams_test
