// SPDX-License-Identifier: Apache-2.0
// Rows, sums and gathers over NCCL, from memory of the host: what MPI makes of the same values. Needs a CUDA device for each
// of two ranks that are processes.
#include "comm/device/nccl.hpp"

#include <gtest/gtest.h>

#include <span>
#include <utility>
#include <vector>

#include "comm/group/communicator.hpp"
#include "layers/kernels/gpu/cuda.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::nccl_test {
namespace {

constexpr int64_t kWidth = 9;

// Row i of those that `from` sends to `to`.
int64_t element(int from, int to, int64_t i, int64_t column) { return ((from * 10 + to) * 1000 + i) * kWidth + column; }

int64_t rows_between(int from, int to) { return from == 0 && to == 1 ? 0 : 3 + 5 * from + 2 * to; }

struct Ragged {
  std::vector<int64_t> counts, offsets;
  std::vector<int64_t> values;

  explicit Ragged(std::vector<int64_t> counts_of_peers) : counts(std::move(counts_of_peers)) {
    int64_t rows = 0;
    for (const int64_t count : counts) {
      offsets.push_back(rows);
      rows += count;
    }
    values.assign(static_cast<size_t>(rows * kWidth), -1);
  }
  int64_t& at(int peer, int64_t i, int64_t column) {
    return values[static_cast<size_t>((offsets[static_cast<size_t>(peer)] + i) * kWidth + column)];
  }
  std::byte* base() { return reinterpret_cast<std::byte*>(values.data()); }
};

void expect_rows(const Communicator& group) {
  const int me = group.rank();
  std::vector<int64_t> out_counts, in_counts;
  for (int peer = 0; peer < group.size(); ++peer) {
    out_counts.push_back(rows_between(me, peer));
    in_counts.push_back(rows_between(peer, me));
  }
  Ragged out(out_counts), in(in_counts);
  for (int peer = 0; peer < group.size(); ++peer) {
    for (int64_t i = 0; i < out.counts[static_cast<size_t>(peer)]; ++i) {
      for (int64_t column = 0; column < kWidth; ++column) out.at(peer, i, column) = element(me, peer, i, column);
    }
  }
  Request moved = group.transport().all_to_all_rows({out.base(), out.counts, out.offsets},
                                                    {in.base(), in.counts, in.offsets}, kWidth * sizeof(int64_t));
  wait(moved);
  for (int peer = 0; peer < group.size(); ++peer) {
    for (int64_t i = 0; i < in.counts[static_cast<size_t>(peer)]; ++i) {
      for (int64_t column = 0; column < kWidth; ++column) {
        EXPECT_EQ(in.at(peer, i, column), element(peer, me, i, column));
      }
    }
  }
}

// Small gathers go over the transport beneath; whole numbers, so that the order of additions does not matter.
void expect_sums(const Communicator& group) {
  for (const size_t count : {size_t{3}, size_t{100'003}}) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 1000 + 7 * static_cast<size_t>(group.rank()));
    const std::vector<float> gathered = wait(group.all_gather(values));
    for (size_t i = 0; i < gathered.size(); ++i) {
      ASSERT_EQ(gathered[i], static_cast<float>(i % count % 1000 + 7 * (i / count)));
    }
    values = wait(group.all_reduce(std::move(values), ReduceOp::sum));
    for (size_t i = 0; i < count; ++i) {
      const auto size = static_cast<size_t>(group.size());
      ASSERT_EQ(values[i], static_cast<float>(size * (i % 1000) + 7 * size * (size - 1) / 2));
    }
  }
}

TEST(Nccl, MovesWhatMpiMoves) {
  const auto body = [](Communicator& world) {
    if (world.transport().name() != "mpi") GTEST_SKIP() << "ranks are threads, and NCCL wants processes";
    if (nccl_version().empty()) GTEST_SKIP() << "this build has no NCCL";
    const CudaDevices devices = find_cuda_devices();
    if (static_cast<int>(devices.list.size()) < world.size()) {
      GTEST_SKIP() << "CUDA devices: " << devices.list.size() << ", ranks: " << world.size() << ". "
                   << devices.why_none;
    }
    const Communicator group(make_nccl_transport(world.transport().split(0, world.rank()), world.rank()), "nccl");
    expect_rows(group);
    expect_sums(group);
    const Communicator backwards = group.split(0, -group.rank(), "backwards");
    EXPECT_EQ(backwards.rank(), group.size() - 1 - group.rank());
    expect_rows(backwards);
    expect_sums(backwards);
  };
  test::on_ranks(body, {2});
}

}  // namespace
}  // namespace cadre::nccl_test
