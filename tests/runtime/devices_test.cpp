// SPDX-License-Identifier: Apache-2.0
// Which device each rank takes, how that is told, and what happens where there is none.
#include "runtime/parallel/devices.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "comm/device/nccl.hpp"
#include "layers/kernels/gpu/cuda.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::devices_test {
namespace {

DeviceSeat seat(int device, int num_devices, std::string_view name) {
  DeviceSeat made = {.device = device, .num_devices = num_devices, .bytes = int64_t{80} << 30, .name = {}};
  name.copy(made.name.data(), made.name.size() - 1);
  return made;
}

TEST(Devices, LinesTellWhoSharesWhat) {
  const Topology topology = Topology::from_leaders({0, 0, 2, 2, 2}, {"a", "a", "b", "b", "b"});
  const std::vector<DeviceSeat> seats = {seat(0, 4, "H100"), seat(1, 4, "H100"), seat(0, 2, "A100"), seat(1, 2, "A100"),
                                         seat(0, 2, "A100")};
  EXPECT_EQ(device_lines(topology, seats),
            (std::vector<std::string>{"a: ranks 0 on cuda:0 (H100), ranks 1 on cuda:1 (H100)",
                                      "b: ranks 2 4 on cuda:0 (A100), ranks 3 on cuda:1 (A100); devices 2, fewer than "
                                      "ranks 3: they take turns"}));
}

TEST(Devices, RanksThatShareADeviceShareItsMemory) {
  const Topology topology = Topology::from_leaders({0, 0, 0, 3}, {"a", "a", "a", "b"});
  const std::vector<DeviceSeat> seats = {seat(0, 2, "H100"), seat(1, 2, "H100"), seat(0, 2, "H100"),
                                         seat(0, 1, "H100")};
  const size_t half = size_t{40} << 30;
  for (int rank = 0; rank < 4; ++rank) check_device_memory(topology, seats, rank, half);
  for (const int rank : {1, 3}) check_device_memory(topology, seats, rank, 2 * half);  // alone
  const std::string message = test::message_of([&] { check_device_memory(topology, seats, 2, half + (1 << 20)); });
  test::expect_message(message, {"2 ranks on cuda:0 of a", "40961 MiB each", "81920 MiB", "train.batch"});
}

TEST(Devices, NcclWantsADeviceForEachRank) {
  const Topology topology = Topology::from_leaders({0, 0, 2, 2}, {"a", "a", "b", "b"});
  const DeviceSeat first = seat(0, 2, "H100");
  const DeviceSeat second = seat(1, 2, "H100");
  EXPECT_EQ(why_no_nccl(topology, {first, second, first, first}), "ranks 2 and 3 share cuda:0 of b");
  const std::string of_build = why_no_nccl(topology, {first, second, second, first});
  EXPECT_EQ(of_build, nccl_version().empty() ? "this build has no NCCL" : "");
}

TEST(Devices, NcclIsRefusedWithoutDevices) {
  const auto body = [](Communicator& world) {
    const std::string message =
        test::message_of([&] { over_devices(world.duplicate("again"), {.device = "cpu"}, {.transport = "nccl"}); });
    test::expect_message(message, {"exchange.transport = nccl", "compute.device = cpu"});
    EXPECT_EQ(over_devices(world.duplicate("again"), {.device = "cpu"}, {}).size(), world.size());
  };
  test::on_ranks(body, {1, 2});
}

TEST(Devices, WithoutOneEveryRankSaysSo) {
  if (!find_cuda_devices().list.empty()) GTEST_SKIP() << "there is a CUDA device here";
  const auto body = [](Communicator& world) {
    try {
      const auto kernels = make_kernels(world, {.device = "cuda"}, RowBits::as_in_training);
      FAIL() << "there are kernels on a device that does not exist";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::environment);
      EXPECT_NE(std::string(error.what()).find("compute.device = cuda: "), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(find_cuda_devices().why_none), std::string::npos) << error.what();
      EXPECT_FALSE(find_cuda_devices().why_none.empty());
    }
  };
  test::on_ranks(body, {1, 2});
}

TEST(Devices, WithOneEveryRankHasKernels) {
  if (const CudaDevices devices = find_cuda_devices(); devices.list.empty()) GTEST_SKIP() << devices.why_none;
  const auto body = [](Communicator& world) {
    const auto kernels = make_kernels(world, {.device = "cuda"}, RowBits::as_in_training);
    EXPECT_EQ(kernels->name(), "cuda");
  };
  test::on_ranks(body, {1, 2});
}

}  // namespace
}  // namespace cadre::devices_test
