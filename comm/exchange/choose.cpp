// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/choose.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

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
  if (setup.group.size() == 1) return {make_flat_exchange(setup), "flat: one rank, nothing travels"};
  if (setup.device_codec != nullptr) return {make_flat_exchange(setup), "flat: rows of a device travel as messages"};
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
