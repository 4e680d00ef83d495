// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/cost_model.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/trace.hpp"
#include "comm/exchange/host_route.hpp"

namespace cadre {
namespace {

constexpr size_t kSmallBytes = 1024;
constexpr size_t kLargeBytes = size_t{512} << 10;
constexpr int kRepetitions = 7;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Every rank sends `bytes` to its target and gets as much from all whose target it is: seconds.
double message_seconds(const Communicator& group, const std::vector<int>& target_of_rank, size_t bytes) {
  const auto num_ranks = static_cast<size_t>(group.size());
  const auto me = static_cast<size_t>(group.rank());
  std::vector<int64_t> send_counts(num_ranks, 0);
  std::vector<int64_t> receive_counts(num_ranks, 0);
  if (target_of_rank[me] != group.rank()) send_counts[static_cast<size_t>(target_of_rank[me])] = 1;
  for (size_t source = 0; source < num_ranks; ++source) {
    if (source != me && target_of_rank[source] == group.rank()) receive_counts[source] = 1;
  }
  const std::vector<int64_t> send_offsets(num_ranks, 0);
  std::vector<int64_t> receive_offsets = offsets_of(receive_counts);
  Buffer out(bytes);
  Buffer in(bytes * static_cast<size_t>(receive_offsets.back()));
  std::memset(out.data(), 1, out.bytes());
  std::vector<double> seconds;
  for (int i = 0; i < kRepetitions; ++i) {
    Request together = group.barrier();
    wait(together);
    const int64_t begin = trace_clock_ns();
    Request moved = group.transport().all_to_all_rows({out.data(), send_counts, send_offsets},
                                                      {in.data(), receive_counts, receive_offsets}, bytes);
    moved.keep(out.share());
    moved.keep(in.share());
    wait(moved);
    seconds.push_back(static_cast<double>(trace_clock_ns() - begin) * 1e-9);
  }
  return median(std::move(seconds));
}

LinkCost measure_link(const Communicator& group, const std::vector<int>& target_of_rank) {
  const double small = message_seconds(group, target_of_rank, kSmallBytes);
  const double large = message_seconds(group, target_of_rank, kLargeBytes);
  return {small, std::max(0.0, large - small) / static_cast<double>(kLargeBytes - kSmallBytes)};
}

double measure_copy() {
  Buffer from(4 * kLargeBytes);
  Buffer into(4 * kLargeBytes);
  std::memset(from.data(), 1, from.bytes());
  std::vector<double> seconds;
  for (int i = 0; i < kRepetitions; ++i) {
    const int64_t begin = trace_clock_ns();
    std::memcpy(into.data(), from.data(), from.bytes());
    seconds.push_back(static_cast<double>(trace_clock_ns() - begin) * 1e-9);
  }
  return median(std::move(seconds)) / static_cast<double>(from.bytes());
}

}  // namespace

CostModel measure_costs(const Communicator& group, const Topology& topology) {
  const HostMap map(topology, group.rank());
  std::vector<int> next_neighbour;
  std::vector<int> next_host;
  for (int rank = 0; rank < group.size(); ++rank) {
    const std::vector<int>& host = map.ranks_of_host(map.host_of(rank));
    next_neighbour.push_back(host[static_cast<size_t>(map.local_rank_of(rank) + 1) % host.size()]);
    next_host.push_back(map.landing_rank(rank, (map.host_of(rank) + 1) % map.num_hosts()));
  }
  CostModel model;
  model.host = measure_link(group, next_neighbour);
  if (map.num_hosts() > 1) model.network = measure_link(group, next_host);
  model.copy_s = measure_copy();
  const std::array<double, 5> mine = {model.host.alpha_s, model.host.beta_s, model.network.alpha_s,
                                      model.network.beta_s, model.copy_s};
  const auto slowest = wait(group.all_reduce(mine, ReduceOp::max));
  return {{slowest[0], slowest[1]}, {slowest[2], slowest[3]}, slowest[4]};
}

}  // namespace cadre
