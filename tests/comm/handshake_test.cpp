// SPDX-License-Identifier: Apache-2.0
// How processes connect beside MPI, among strangers, addresses that lead nowhere and peers that are late. The processes are
// threads here.
#include "comm/liveness/handshake.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "comm/liveness/watch_graph.hpp"

namespace cadre::handshake_test {
namespace {

using namespace std::chrono_literals;

constexpr auto kLimit = 30s;

struct Process {
  Socket listener;
  std::string failure = "not run";
  std::vector<Link> links;
};

class HandshakeTest : public testing::Test {
 protected:
  void make(int num_ranks) {
    processes = std::vector<Process>(static_cast<size_t>(num_ranks));
    for (Process& process : processes) {
      uint16_t port = 0;
      process.listener = listen_anywhere(port);
      ASSERT_TRUE(process.listener.is_open());
      contacts.push_back(make_contact(port));
    }
  }

  void run_rank(size_t rank, Handshake::Clock::duration limit = kLimit) {
    Process& process = processes[rank];
    const auto size = static_cast<int>(processes.size());
    Handshake handshake(contacts, static_cast<int>(rank), watch_neighbours(static_cast<int>(rank), size),
                        std::move(process.listener));
    process.failure = handshake.run(Handshake::Clock::now() + limit);
    if (process.failure.empty()) process.links = handshake.take_links();
  }

  void run_all() {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < processes.size(); ++rank) threads.emplace_back([this, rank] { run_rank(rank); });
  }

  // Every link carries a frame to the process that it should.
  void expect_connected() {
    const auto size = static_cast<int>(processes.size());
    for (size_t rank = 0; rank < processes.size(); ++rank) {
      Process& process = processes[rank];
      ASSERT_EQ(process.failure, "");
      const std::vector<int> peers = watch_neighbours(static_cast<int>(rank), size);
      ASSERT_EQ(process.links.size(), peers.size());
      for (size_t i = 0; i < peers.size(); ++i) {
        Link& link = process.links[i];
        ASSERT_EQ(link.peer(), peers[i]);
        link.queue({.kind = Frame::Kind::view, .origin = static_cast<int32_t>(rank), .subject = link.peer()});
        link.flush();
        EXPECT_FALSE(link.has_unsent());
      }
    }
    for (size_t rank = 0; rank < processes.size(); ++rank) {
      for (Link& link : processes[rank].links) {
        std::vector<Frame> frames;
        while (frames.empty()) ASSERT_TRUE(link.receive(frames, size));
        ASSERT_EQ(frames.size(), 1U);
        EXPECT_EQ(frames[0].origin, link.peer());
        EXPECT_EQ(frames[0].subject, static_cast<int32_t>(rank));
      }
    }
  }

  Socket stranger_at(size_t rank) const {
    const Address loopback{.family = AF_INET, .bytes = {127, 0, 0, 1}};
    return begin_connect(loopback, contacts[rank].port);
  }

  std::vector<Contact> contacts;
  std::vector<Process> processes;
};

TEST_F(HandshakeTest, connects_neighbours) {
  make(14);
  run_all();
  expect_connected();
}

TEST_F(HandshakeTest, strangers_hold_up_no_process) {
  make(4);
  std::vector<Socket> strangers;
  for (size_t rank = 0; rank < contacts.size(); ++rank) {
    for (int i = 0; i < 100; ++i) strangers.push_back(stranger_at(rank));  // more than a handshake keeps
    std::array<std::byte, sizeof(Greeting)> noise{};
    noise.fill(std::byte{0x5a});
    strangers.push_back(stranger_at(rank));
    std::this_thread::sleep_for(10ms);
    EXPECT_EQ(send(strangers.back().get(), noise.data(), noise.size(), MSG_NOSIGNAL), 40);
  }
  run_all();
  expect_connected();
}

// A greeting of another job, or of another rank than its proof is for, is not counted.
TEST_F(HandshakeTest, membership_is_proved) {
  const Secret secret{1, 2, 3, 4};
  const Greeting greeting = make_greeting(secret, 5, 9);
  EXPECT_TRUE(is_genuine(secret, greeting));
  EXPECT_FALSE(is_genuine({1, 2, 3, 5}, greeting));
  for (Greeting forged :
       {Greeting{6, 9, greeting.proof}, Greeting{5, 8, greeting.proof}, Greeting{9, 5, greeting.proof}}) {
    EXPECT_FALSE(is_genuine(secret, forged));
  }
  // Threefry4x64-20 of a zero key and counter, from the known-answer file of Random123.
  EXPECT_EQ(make_greeting({}, 0, 0).proof,
            (Secret{0x09218EBDE6C85537, 0x55941F5266D86105, 0x4BD25E16282434DC, 0xEE29EC846BD2E40B}));
}

TEST_F(HandshakeTest, all_addresses_of_a_host_are_tried) {
  make(2);
  // 192.0.2.0/24 and 2001:db8::/32 are for documentation: nothing answers there, or a router refuses.
  Contact& called = contacts[0];
  called.host = {"elsewhere"};
  called.addresses[0] = {.family = AF_INET, .bytes = {192, 0, 2, 1}};
  called.addresses[1] = {.family = AF_INET6, .bytes = {0x20, 0x01, 0x0d, 0xb8}};
  called.addresses[2] = {.family = AF_INET, .bytes = {127, 0, 0, 1}};
  called.num_addresses = 3;
  run_all();
  expect_connected();
}

// A socket that listens at 127.0.0.`last` alone; a port of 0 is chosen.
Socket listen_at(uint8_t last, uint16_t& port) {
  Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + last);
  address.sin_port = port;
  socklen_t size = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener.get(), any, size) != 0 || listen(listener.get(), 8) != 0 ||
      getsockname(listener.get(), any, &size) != 0) {
    return {};
  }
  port = address.sin_port;
  return listener;
}

// Another program listens at the first address, takes the connection and never answers.
TEST_F(HandshakeTest, a_listener_of_another_program_is_left) {
  make(2);
  uint16_t port = 0;
  processes[0].listener = listen_at(1, port);
  const Socket mute = listen_at(2, port);
  ASSERT_TRUE(processes[0].listener.is_open() && mute.is_open());
  contacts[0].host = {"elsewhere"};
  contacts[0].port = port;
  contacts[0].addresses[0] = {.family = AF_INET, .bytes = {127, 0, 0, 2}};
  contacts[0].addresses[1] = {.family = AF_INET, .bytes = {127, 0, 0, 1}};
  contacts[0].num_addresses = 2;
  run_all();
  expect_connected();
}

TEST_F(HandshakeTest, a_process_that_does_not_come_is_named) {
  make(3);
  run_rank(1, 50ms);
  EXPECT_NE(processes[1].failure.find("rank 1 on "), std::string::npos) << processes[1].failure;
  EXPECT_NE(processes[1].failure.find("cannot connect to rank 0 on "), std::string::npos) << processes[1].failure;
  run_rank(0, 50ms);
  EXPECT_NE(processes[0].failure.find(" did not connect to rank 0 on "), std::string::npos) << processes[0].failure;
}

TEST_F(HandshakeTest, too_few_descriptors_are_named_at_once) {
  make(2);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = dup(0);
  ASSERT_GE(next, 0);
  close(next);
  const rlimit few{static_cast<rlim_t>(next), before.rlim_max};
  const auto begun = Handshake::Clock::now();
  {
    // Handshake raises the limit where it may.
    Handshake handshake(contacts, 1, {0}, std::move(processes[1].listener));
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    processes[1].failure = handshake.run(begun + kLimit);
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_NE(processes[1].failure.find("no file descriptor left"), std::string::npos) << processes[1].failure;
}

TEST_F(HandshakeTest, a_link_survives_partial_sends) {
  std::array<int, 2> ends{};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()), 0);
  Link a(1, Socket(ends[0]));
  Link b(0, Socket(ends[1]));
  constexpr int kFrames = 20000;  // 1.9 MB: more than a socket buffer
  for (int i = 0; i < kFrames; ++i) a.queue({.kind = Frame::Kind::lost, .code = i});
  std::vector<Frame> frames;
  a.flush();
  EXPECT_TRUE(a.has_unsent());
  while (frames.size() < kFrames) {
    a.flush();
    ASSERT_TRUE(b.receive(frames, 2));
  }
  for (int i = 0; i < kFrames; ++i) ASSERT_EQ(frames[static_cast<size_t>(i)].code, i);

  // What is not a frame of this job closes the connection.
  a.queue({.kind = Frame::Kind::lost, .origin = 2});
  a.flush();
  EXPECT_FALSE(b.receive(frames, 2));
  // Questions to a peer that is stopped do not pile up.
  for (int i = 0; i < 1'000'000; ++i) a.queue({.kind = Frame::Kind::question});
  int drained = 0;
  for (; a.has_unsent(); ++drained) {
    a.flush();
    frames.clear();
    static_cast<void>(b.receive(frames, 2));
  }
  EXPECT_LT(drained, 1000);
}

}  // namespace
}  // namespace cadre::handshake_test
