// SPDX-License-Identifier: Apache-2.0
// Messages, rows, sums and gathers from and to a device whose memory the transport beneath must not touch: here pages that
// end the process when it does.
#include "comm/device/staged.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "comm/job/wait.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::staged_test {
namespace {

constexpr size_t kDeviceBytes = size_t{1} << 16;

// The same pages twice: where nobody may look, and where copies are made.
class Device final : public DeviceCopies {
 public:
  Device() {
    const int file = memfd_create("device", 0);
    EXPECT_EQ(ftruncate(file, kDeviceBytes), 0);
    memory_ = map(file, PROT_NONE);
    window_ = map(file, PROT_READ | PROT_WRITE);
    close(file);
  }
  ~Device() override {
    munmap(memory_, kDeviceBytes);
    munmap(window_, kDeviceBytes);
  }

  bool is_device_memory(const std::byte* data) const override {
    return data >= memory_ && data < memory_ + kDeviceBytes;
  }
  Memory& staging() override { return host_memory(); }
  void to_host(std::byte* host, const std::byte* device, size_t bytes) override {
    waiting_.push_back({host, window_ + (device - memory_), bytes});
  }
  void to_device(std::byte* device, const std::byte* host, size_t bytes) override {
    waiting_.push_back({window_ + (device - memory_), host, bytes});
  }
  void finish() override {
    for (const Copy& copy : waiting_) std::memcpy(copy.to, copy.from, copy.bytes);
    num_copies += static_cast<int>(waiting_.size());
    waiting_.clear();
  }

  // Values on the device.
  std::span<int64_t> put(const std::vector<int64_t>& values) {
    auto* const at = reinterpret_cast<int64_t*>(memory_ + used_);
    std::memcpy(window_ + used_, values.data(), values.size() * sizeof(int64_t));
    used_ += values.size() * sizeof(int64_t);
    return {at, values.size()};
  }
  std::vector<int64_t> get(std::span<const int64_t> values) {
    std::vector<int64_t> host(values.size());
    std::memcpy(host.data(), window_ + (reinterpret_cast<const std::byte*>(values.data()) - memory_),
                values.size_bytes());
    return host;
  }

  int num_copies = 0;

 private:
  struct Copy {
    std::byte* to;
    const std::byte* from;
    size_t bytes;
  };

  std::vector<Copy> waiting_;
  static std::byte* map(int file, int protection) {
    return static_cast<std::byte*>(mmap(nullptr, kDeviceBytes, protection, MAP_SHARED, file, 0));
  }

  std::byte* memory_;
  std::byte* window_;
  size_t used_ = 0;
};

std::vector<int64_t> numbers(int64_t first, size_t count) {
  std::vector<int64_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

void expect_collectives(const Communicator& group, Device& device) {
  const int64_t me = group.rank();
  const auto size = static_cast<size_t>(group.size());
  const std::span<int64_t> sums = device.put(numbers(me, 100));
  const std::span<int64_t> mine = device.put(numbers(10 * me, 3));
  const std::span<int64_t> all = device.put(std::vector<int64_t>(3 * size, -1));
  const std::span<int64_t> blocks = device.put(numbers(100 * me, size));
  const std::span<int64_t> turned = device.put(std::vector<int64_t>(size, -1));
  const std::span<int64_t> told = device.put(numbers(me, 2));
  std::vector<Request> requests;
  Transport& transport = group.transport();
  requests.push_back(group.all_reduce(sums, nullptr, ReduceOp::sum));
  requests.push_back(transport.all_gather(std::as_bytes(mine), std::as_writable_bytes(all)));
  requests.push_back(transport.all_to_all(std::as_bytes(blocks), std::as_writable_bytes(turned)));
  requests.push_back(transport.broadcast(std::as_writable_bytes(told), group.size() - 1));
  for (Request& request : requests) wait(request);
  const auto ranks = static_cast<int64_t>(size);
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(device.get(sums)[static_cast<size_t>(i)], ranks * i + ranks * (ranks - 1) / 2);
  }
  for (size_t peer = 0; peer < size; ++peer) {
    const auto from = static_cast<int64_t>(peer);
    EXPECT_EQ(device.get(all.subspan(3 * peer, 3)), numbers(10 * from, 3));
    EXPECT_EQ(device.get(turned)[peer], 100 * from + me);
  }
  EXPECT_EQ(device.get(told), numbers(ranks - 1, 2));
}

// 1 + to rows go to each rank, with a row between them that is nobody's; they arrive as they are sent.
void expect_rows(const Communicator& group, Device& device) {
  const int64_t me = group.rank();
  std::vector<int64_t> out_counts, out_offsets, in_counts, in_offsets, rows;
  int64_t arriving = 0;
  for (int64_t peer = 0; peer < group.size(); ++peer) {
    out_counts.push_back(1 + peer);
    out_offsets.push_back(static_cast<int64_t>(rows.size()));
    for (int64_t i = 0; i < 1 + peer; ++i) rows.push_back(1000 * me + 10 * peer + i);
    rows.push_back(-7);
    in_counts.push_back(1 + me);
    in_offsets.push_back(arriving);
    arriving += in_counts.back() + 1;
  }
  const std::span<int64_t> out = device.put(rows);
  const std::span<int64_t> in = device.put(std::vector<int64_t>(static_cast<size_t>(arriving), -5));
  Request moved =
      group.transport().all_to_all_rows({reinterpret_cast<const std::byte*>(out.data()), out_counts, out_offsets},
                                        {reinterpret_cast<std::byte*>(in.data()), in_counts, in_offsets}, 8);
  wait(moved);
  const std::vector<int64_t> came = device.get(in);
  for (int64_t peer = 0; peer < group.size(); ++peer) {
    const auto first = static_cast<size_t>(in_offsets[static_cast<size_t>(peer)]);
    for (int64_t i = 0; i < 1 + me; ++i) {
      EXPECT_EQ(came[first + static_cast<size_t>(i)], 1000 * peer + 10 * me + i);
    }
    EXPECT_EQ(came[first + static_cast<size_t>(1 + me)], -5) << "what lies between rows stays";
  }
}

void expect_messages(const Communicator& group, Device& device) {
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  const std::span<int64_t> sent = device.put(numbers(group.rank(), 5));
  const std::span<int64_t> got = device.put(std::vector<int64_t>(5, -1));
  Request arrived = group.transport().receive(std::as_writable_bytes(got), previous, 3);
  Request gone = group.transport().send(std::as_bytes(sent), next, 3);
  wait(arrived);
  wait(gone);
  EXPECT_EQ(device.get(got), numbers(previous, 5));
}

TEST(Staged, MovesWhatLiesOnADevice) {
  test::on_ranks([](Communicator& world) {
    const auto device = std::make_shared<Device>();
    const Communicator group(make_staged_transport(world.transport().split(0, world.rank()), device), "staged");
    expect_collectives(group, *device);
    expect_rows(group, *device);
    expect_messages(group, *device);
    const Communicator backwards = group.split(0, -group.rank(), "backwards");
    EXPECT_EQ(backwards.rank(), group.size() - 1 - group.rank());
    expect_collectives(backwards, *device);
    expect_rows(backwards, *device);
  });
}

TEST(Staged, CopiesNothingOfTheHost) {
  test::on_ranks([](Communicator& world) {
    const auto device = std::make_shared<Device>();
    const Communicator group(make_staged_transport(world.transport().split(0, world.rank()), device), "staged");
    EXPECT_EQ(wait(group.all_reduce(numbers(1, 3), ReduceOp::sum)).front(), group.size());
    EXPECT_EQ(device->num_copies, 0);
  });
}

}  // namespace
}  // namespace cadre::staged_test
