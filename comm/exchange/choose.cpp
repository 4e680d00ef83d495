// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/choose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"
#include "comm/exchange/hierarchical.hpp"

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

constexpr double kAsGoodAsEqual = 1.25;

// Of `places` even ones, how many are hit by `draws` of different experts.
double expected_hit(double places, double draws) { return places * (1.0 - std::pow(1.0 - 1.0 / places, draws)); }

// Bytes of one rank, each way, and how they split.
struct Volume {
  double ranks, hosts, neighbours;  // in the group; of each host, without this rank
  double row_copies;                // ranks that need a token, per token
  double host_copies;               // hosts that do

  double far_ranks() const { return ranks - neighbours - 1.0; }
};

Volume volume_of(const ExchangeWorkload& workload, const Topology& topology) {
  Volume volume{};
  volume.ranks = topology.num_ranks();
  volume.hosts = topology.num_hosts();
  volume.neighbours = volume.ranks / volume.hosts - 1.0;
  volume.row_copies = expected_hit(volume.ranks, workload.top_k);
  volume.host_copies = expected_hit(volume.hosts, workload.top_k);
  return volume;
}

// A message to every peer with the given share of all rows in it.
double pairwise(const Volume& volume, const CostModel& costs, double bytes) {
  return costs.host.time(volume.neighbours, bytes * volume.neighbours / volume.ranks) +
         costs.network.time(volume.far_ranks(), bytes * volume.far_ranks() / volume.ranks);
}

double flat_combine(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double tokens = static_cast<double>(workload.tokens);
  const double rows = tokens * (workload.slot_order ? workload.top_k : volume.row_copies);
  // Sums are written before they are sent, slots are packed: one more pass either way.
  return pairwise(volume, costs, rows * static_cast<double>(workload.combine.wire_bytes())) +
         rows * static_cast<double>(workload.combine.row_bytes()) * costs.copy_s;
}

double flat_time(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double rows = static_cast<double>(workload.tokens) * volume.row_copies;
  return pairwise(volume, costs, rows * static_cast<double>(workload.dispatch.wire_bytes())) +
         rows * static_cast<double>(workload.dispatch.row_bytes()) * costs.copy_s +
         flat_combine(workload, volume, costs);
}

double all_gather_time(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double rows = static_cast<double>(workload.tokens) * volume.ranks;
  // The rows, and the list of those that each peer is to take.
  return pairwise(volume, costs, rows * static_cast<double>(workload.dispatch.wire_bytes())) +
         pairwise(volume, costs, 0.0) + flat_combine(workload, volume, costs);
}

// Rows are read where they are by the product that wants them: what is left is to tell each other.
double in_place_time(const Volume& volume, const CostModel& costs) {
  return 2.0 * costs.host.time(std::max(1.0, volume.neighbours), 0.0);
}

double hierarchical_time(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double tokens = static_cast<double>(workload.tokens);
  const double far_hosts = volume.hosts - 1.0;
  const double far_rows = tokens * volume.host_copies * far_hosts / volume.hosts;
  const double sums = workload.slot_order ? tokens * workload.top_k * far_hosts / volume.hosts : far_rows;
  const double there = costs.network.time(far_hosts, far_rows * static_cast<double>(workload.dispatch.wire_bytes()));
  const double back = costs.network.time(far_hosts, sums * static_cast<double>(workload.combine.wire_bytes()));
  const double partial_rows = tokens * volume.row_copies;
  return there + back + 2.0 * in_place_time(volume, costs) +
         (far_rows * static_cast<double>(workload.dispatch.row_bytes()) +
          partial_rows * static_cast<double>(workload.combine.row_bytes())) *
             costs.copy_s;
}

std::string in_words(const std::vector<Prediction>& predictions) {
  std::string text;
  for (const Prediction& prediction : predictions) {
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", prediction.strategy, prediction.seconds * 1e3);
  }
  return text;
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

std::vector<Prediction> predict(const ExchangeWorkload& workload, const Topology& topology, const CostModel& costs) {
  const Volume volume = volume_of(workload, topology);
  std::vector<Prediction> predictions;
  if (volume.hosts == 1.0) predictions.push_back({"shared", in_place_time(volume, costs)});
  if (volume.hosts > 1.0) predictions.push_back({"hierarchical", hierarchical_time(workload, volume, costs)});
  predictions.push_back({"flat", flat_time(workload, volume, costs)});
  predictions.push_back({"all_gather", all_gather_time(workload, volume, costs)});
  // Insertion by clear advantage keeps the order above among equals.
  for (size_t i = 1; i < predictions.size(); ++i) {
    for (size_t j = i; j > 0 && predictions[j].seconds * kAsGoodAsEqual < predictions[j - 1].seconds; --j) {
      std::swap(predictions[j], predictions[j - 1]);
    }
  }
  return predictions;
}

Choice choose_exchange(const ExchangeSetup& setup, const ExchangeWorkload& workload) {
  if (setup.group.size() == 1) return {make_exchange("flat", setup), "flat: one rank, nothing travels"};
  if (setup.device_codec != nullptr) return {make_exchange("flat", setup), "flat: rows of a device travel as messages"};
  const CostModel costs = measure_costs(setup.group, setup.topology);
  const std::vector<Prediction> predictions = predict(workload, setup.topology, costs);
  std::string refused;
  for (const Prediction& prediction : predictions) {
    try {
      auto exchange = make_exchange(prediction.strategy, setup);
      return {std::move(exchange),
              fmt::format("{}: predicted ms a layer: {}{}", prediction.strategy, in_words(predictions), refused)};
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::environment) throw;
      refused += fmt::format("; not {}: {}", prediction.strategy, error.what());
    }
  }
  throw Error(ErrorKind::environment, "no exchange strategy can be made" + refused);
}

}  // namespace cadre
