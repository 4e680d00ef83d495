// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/choose.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/base/median.hpp"
#include "comm/base/trace.hpp"
#include "comm/exchange/hierarchical.hpp"

namespace cadre {
namespace {

constexpr size_t kSmallBytes = 1024;
constexpr size_t kLargeBytes = size_t{512} << 10;
constexpr int kRepetitions = 7;
constexpr std::chrono::milliseconds kPause{100};
constexpr size_t kShortTrainBytes = size_t{2} << 20;
constexpr size_t kLongTrainBytes = size_t{6} << 20;
constexpr int kTrains = 3;
constexpr double kClearBurst = 0.05;  // of the time of a long train; below it is noise

// Every rank sends `bytes` to its target and gets as much from all whose target it is: seconds of each repetition.
std::vector<double> message_seconds(const Communicator& group, const std::vector<int>& target_of_rank, size_t bytes,
                                    int repetitions) {
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
  for (int i = 0; i < repetitions; ++i) {
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
  return seconds;
}

// Of a message after a pause, in which the link saved up what it can.
double after_pause(const Communicator& group, const std::vector<int>& target_of_rank, size_t bytes) {
  std::vector<double> seconds;
  for (int i = 0; i < kTrains; ++i) {
    std::this_thread::sleep_for(kPause);
    seconds.push_back(message_seconds(group, target_of_rank, bytes, 1).front());
  }
  return median_of(std::move(seconds));
}

// The rate beyond a burst, from two messages that are longer than it; the burst is what both gain.
void measure_burst(const Communicator& group, const std::vector<int>& target_of_rank, LinkCost& link) {
  const double shorter = after_pause(group, target_of_rank, kShortTrainBytes);
  const double longer = after_pause(group, target_of_rank, kLongTrainBytes);
  link.beta_s = std::max(0.0, longer - shorter) / static_cast<double>(kLongTrainBytes - kShortTrainBytes);
  const double gained = link.time(1.0, static_cast<double>(kLongTrainBytes)) - longer;
  link.burst_s = gained > kClearBurst * longer ? gained : 0.0;
}

LinkCost measure_link(const Communicator& group, const std::vector<int>& target_of_rank) {
  const double small = median_of(message_seconds(group, target_of_rank, kSmallBytes, kRepetitions));
  const double large = median_of(message_seconds(group, target_of_rank, kLargeBytes, kRepetitions));
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
  return median_of(std::move(seconds)) / static_cast<double>(from.bytes());
}

constexpr double kAsGoodAsEqual = 1.25;

// Of `places` even ones, how many are hit by `draws` different experts of `experts`; 0: of very many.
double expected_hit(double places, double draws, double experts) {
  if (experts < places || experts <= draws) {
    return experts > 0.0 && experts <= draws ? places : places * (1.0 - std::pow(1.0 - 1.0 / places, draws));
  }
  // All draws miss the experts / places of one.
  double missed = 1.0;
  for (double drawn = 0.0; drawn < draws; drawn += 1.0) {
    missed *= std::max(0.0, experts - experts / places - drawn) / (experts - drawn);
  }
  return places * (1.0 - missed);
}

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
  volume.row_copies = expected_hit(volume.ranks, workload.top_k, workload.experts);
  volume.host_copies = expected_hit(volume.hosts, workload.top_k, workload.experts);
  if (workload.most_hosts > 0) volume.host_copies = std::min<double>(volume.host_copies, workload.most_hosts);
  return volume;
}

// A message to every peer with the given share of all rows in it.
LinkTime pairwise(const Volume& volume, const CostModel& costs, double bytes) {
  const double far = volume.far_ranks();
  return {costs.host.time(0.0, bytes * volume.neighbours / volume.ranks) +
              costs.network.time(0.0, bytes * far / volume.ranks),
          costs.host.time(volume.neighbours, 0.0) + costs.network.time(far, 0.0)};
}

double rows_back(const ExchangeWorkload& workload, const Volume& volume) {
  return static_cast<double>(workload.tokens) * (workload.slot_order ? workload.top_k : volume.row_copies);
}

LinkTime flat_combine(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  return pairwise(volume, costs, rows_back(workload, volume) * static_cast<double>(workload.combine.wire_bytes()));
}

// Sums are written before they are sent, slots are packed: one more pass either way.
double flat_copied(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  return rows_back(workload, volume) * static_cast<double>(workload.combine.row_bytes()) * costs.copy_s;
}

ExchangeTimes flat_times(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double rows = static_cast<double>(workload.tokens) * volume.row_copies;
  return {.dispatch = pairwise(volume, costs, rows * static_cast<double>(workload.dispatch.wire_bytes())),
          .combine = flat_combine(workload, volume, costs),
          .copied_s = rows * static_cast<double>(workload.dispatch.row_bytes()) * costs.copy_s +
                      flat_copied(workload, volume, costs)};
}

ExchangeTimes all_gather_times(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double rows = static_cast<double>(workload.tokens) * volume.ranks;
  LinkTime there = pairwise(volume, costs, rows * static_cast<double>(workload.dispatch.wire_bytes()));
  there.latency_s *= 2.0;  // of the rows, and of the list of those that each peer is to take
  return {.dispatch = there,
          .combine = flat_combine(workload, volume, costs),
          .copied_s = flat_copied(workload, volume, costs)};
}

// Rows are read where they are by the product that wants them: what is left is to tell each other.
LinkTime in_place_time(const Volume& volume, const CostModel& costs) {
  return {0.0, costs.host.time(std::max(1.0, volume.neighbours), 0.0)};
}

ExchangeTimes hierarchical_times(const ExchangeWorkload& workload, const Volume& volume, const CostModel& costs) {
  const double tokens = static_cast<double>(workload.tokens);
  const double far_hosts = volume.hosts - 1.0;
  const double far_rows = tokens * volume.host_copies * far_hosts / volume.hosts;
  const double sums = workload.slot_order ? tokens * workload.top_k * far_hosts / volume.hosts : far_rows;
  const LinkTime told = in_place_time(volume, costs);
  const auto way = [&](double rows, const RowFormat& format) {
    return LinkTime{costs.network.time(0.0, rows * static_cast<double>(format.wire_bytes())),
                    costs.network.time(far_hosts, 0.0) + 2.0 * told.latency_s};
  };
  return {.dispatch = way(far_rows, workload.dispatch),
          .combine = way(sums, workload.combine),
          .copied_s = (far_rows * static_cast<double>(workload.dispatch.row_bytes()) +
                       tokens * volume.row_copies * static_cast<double>(workload.combine.row_bytes())) *
                      costs.copy_s};
}

std::string in_words(const std::vector<Prediction>& predictions) {
  std::string text;
  for (const Prediction& prediction : predictions) {
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", prediction.strategy, prediction.seconds * 1e3);
  }
  return text;
}

}  // namespace

CostModel measure_costs(const Communicator& group, const Topology& topology, Bursts bursts) {
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
  if (bursts == Bursts::measured && map.num_hosts() > 1) measure_burst(group, next_host, model.network);
  model.copy_s = measure_copy();
  const std::array<double, 5> mine = {model.host.alpha_s, model.host.beta_s, model.network.alpha_s,
                                      model.network.beta_s, model.copy_s};
  const auto slowest = wait(group.all_reduce(mine, ReduceOp::max));
  const double burst_s = wait(group.all_reduce(model.network.burst_s, ReduceOp::min));
  return {{slowest[0], slowest[1]}, {slowest[2], slowest[3], burst_s}, slowest[4]};
}

ExchangeTimes exchange_times(const std::string& strategy, const ExchangeWorkload& workload, const Topology& topology,
                             const CostModel& costs) {
  const Volume volume = volume_of(workload, topology);
  ExchangeTimes times;
  if (strategy == "shared") {
    times.dispatch = times.combine = in_place_time(volume, costs);
  } else if (strategy == "hierarchical") {
    times = hierarchical_times(workload, volume, costs);
  } else if (strategy == "all_gather") {
    times = all_gather_times(workload, volume, costs);
  } else {
    times = flat_times(workload, volume, costs);
  }
  times.row_copies = volume.row_copies;
  return times;
}

std::vector<Prediction> predict(const ExchangeWorkload& workload, const Topology& topology, const CostModel& costs) {
  std::vector<Prediction> predictions;
  for (const char* strategy : {"shared", "hierarchical", "flat", "all_gather"}) {
    const bool one_host = topology.num_hosts() == 1;
    if (strategy == std::string_view(one_host ? "hierarchical" : "shared")) continue;
    const ExchangeTimes times = exchange_times(strategy, workload, topology, costs);
    predictions.push_back({strategy, times.dispatch.seconds() + times.combine.seconds() + times.copied_s});
  }
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
