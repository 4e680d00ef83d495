// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/bucket_traffic.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "comm/group/reduction_queue.hpp"
#include "layers/model/model.hpp"
#include "runtime/parallel/expert_placement.hpp"
#include "runtime/parallel/optimizer_shards.hpp"
#include "runtime/plan/row_roles.hpp"

namespace cadre {
namespace {

constexpr double kBytesOfGiga = 1e9;
constexpr double kValueBytes = sizeof(float);

double memory_s(double elements, double gigabytes) {
  return elements > 0.0 ? elements * kValueBytes / (gigabytes * kBytesOfGiga) : 0.0;
}

// The ranks of a group, whose neighbours are `stride` ranks apart, as one of them sees them.
struct Peers {
  Peers(int size, int stride, int ranks_a_host)
      : ranks(size), near(std::clamp(ranks_a_host / stride, 1, size) - 1), far(size - 1 - near) {}

  double ranks;
  double near;
  double far;
};

// `elements` go to the peers or come from them, as many for each, in `pieces` messages a peer.
double links_s(const Peers& peers, double elements, double bytes_an_element, double pieces, const Machine& machine) {
  if (peers.ranks <= 1.0 || elements <= 0.0) return 0.0;
  const double each = elements * bytes_an_element / (peers.ranks - 1.0);
  return machine.host.time(0.0, peers.near * each) + machine.network.time(0.0, peers.far * each) +
         pieces / LinkClock::kPiecesUnderWay *
             (machine.host.time(peers.near, 0.0) + machine.network.time(peers.far, 0.0));
}

// A queue cuts the slice of each rank in parts of equal length.
double pieces_of(double longest, double ranks) {
  const auto piece = static_cast<double>(ReductionQueue::piece_elements(static_cast<int>(ranks)));
  return std::ceil(longest * ranks / piece);
}

class TrafficMaker {
 public:
  TrafficMaker(const RunConfig& config, const Machine& machine)
      : sharded_(config.parallel.shard_optimizer),
        on_device_(config.compute.device != "cpu"),
        wire_bytes_(config.exchange.gradients == "bf16" ? 2.0 : kValueBytes),
        machine_(machine) {}

  void add(const BucketShare& share, const Peers& peers, BucketTraffic& traffic) const {
    if (peers.ranks <= 1.0 || share.elements <= 0.0) return;
    if (on_device_) return add_of_device(share, peers, traffic);
    const double longest = share.longest();
    const double others = peers.ranks - 1.0;
    // The rank with the longest slice gets it from all others, and sends its new values to all.
    const double most = std::max(others * longest, share.elements - longest);
    const bool is_even = longest * peers.ranks <= 2.0 * share.elements;
    const double slice = share.elements / peers.ranks;
    const double of_slices = links_s(peers, others * slice, kValueBytes, pieces_of(slice, peers.ranks), machine_);
    if (sharded_ && is_even) {
      traffic.reduce_s += links_s(peers, most, wire_bytes_, pieces_of(longest, peers.ranks), machine_);
      traffic.add_s += memory_s(others * longest, machine_.reduction);
    } else {
      traffic.reduce_s += 2.0 * links_s(peers, others * slice, wire_bytes_, pieces_of(slice, peers.ranks), machine_);
      traffic.add_s += memory_s(others * slice, machine_.reduction);
    }
    if (!sharded_) return;
    // Uneven ones go to slices of all ranks first, and from there to all.
    const double direct = links_s(peers, most, kValueBytes, pieces_of(longest, peers.ranks), machine_);
    traffic.values_s += is_even ? direct : 2.0 * of_slices;
  }

  // The norm counts each parameter once in either case.
  double tail_s(const std::vector<BucketShare>& buckets, int ranks) const {
    double elements = 0.0;
    std::vector<double> owned(static_cast<size_t>(ranks));
    for (const BucketShare& bucket : buckets) {
      elements += bucket.elements;
      for (size_t r = 0; r < owned.size(); ++r) owned[r] += bucket.of_rank[r];
    }
    const double most = ranks > 1 ? std::ranges::max(owned) : elements;
    return memory_s(most, machine_.gradient_norm) + memory_s(sharded_ ? most : elements, machine_.update) +
           memory_s(elements, machine_.repack);
  }

 private:
  // Sums of all, as a ring moves them, and the new values from the rank that keeps them by way of the others: what NCCL takes where
  // links are the limit, with a way through a tree of ranks for each operation.
  void add_of_device(const BucketShare& share, const Peers& peers, BucketTraffic& traffic) const {
    const double slices = share.elements * (peers.ranks - 1.0) / peers.ranks;
    const double way_s =
        std::ceil(std::log2(peers.ranks)) * (peers.far > 0.0 ? machine_.network : machine_.host).time(1.0, 0.0);
    traffic.reduce_s += 2.0 * (links_s(peers, slices, kValueBytes, 0.0, machine_) + way_s);
    traffic.add_s += memory_s(slices, machine_.reduction);
    if (!sharded_) return;
    const auto keepers =
        static_cast<double>(std::ranges::count_if(share.of_rank, [](double kept) { return kept > 0.0; }));
    traffic.values_s += links_s(peers, slices, kValueBytes, 0.0, machine_) + keepers * way_s;
  }

  bool sharded_;
  bool on_device_;
  double wire_bytes_;
  const Machine& machine_;
};

BucketShare share_of(Stage& stage, int bucket, Placement placement, const OptimizerShards& shards, int ranks) {
  BucketShare share;
  share.of_rank.resize(static_cast<size_t>(ranks));
  stage.each_parameter(bucket, [&](const Parameter& parameter) {
    if (parameter.placement != placement) return;
    const auto elements = static_cast<double>(parameter.value.numel());
    share.elements += elements;
    const std::optional<int> owner = shards.owner(parameter);
    if (owner) share.of_rank[static_cast<size_t>(*owner)] += elements;
  });
  return share;
}

}  // namespace

double bytes_of_piece(int ranks) {
  return static_cast<double>(ReductionQueue::piece_elements(ranks)) * kValueBytes * (ranks - 1.0) / ranks;
}

StageTraffic traffic_of_stage(const RunConfig& config, const Grid& grid, int ranks_a_host, const Machine& machine,
                              const StageShares& shares) {
  const TrafficMaker maker(config, machine);
  const Peers shared(shares.shared_ranks, 1, ranks_a_host);
  const Peers expert(shares.expert_ranks, grid.expert, ranks_a_host);
  StageTraffic stage;
  for (size_t bucket = 0; bucket < shares.shared.size(); ++bucket) {
    BucketTraffic& traffic = stage.buckets.emplace_back();
    maker.add(shares.shared[bucket], shared, traffic);
    maker.add(shares.expert[bucket], expert, traffic);
  }
  stage.tail_s = maker.tail_s(shares.shared, shares.shared_ranks) + maker.tail_s(shares.expert, shares.expert_ranks);
  return stage;
}

double BucketShare::longest() const { return of_rank.empty() ? 0.0 : std::ranges::max(of_rank); }

std::vector<StageShares> bucket_shares(const RunConfig& config, const Grid& grid, const PipelineRoutes& routes) {
  std::map<StageRole, StageShares> of_role;
  for (int row = 0; row < grid.pipeline; ++row) {
    std::vector<StagePlace> places;
    for (const StagePlace& place : routes.stages_of(row)) {
      if (of_role.try_emplace(role_of(config, routes, place)).second) places.push_back(place);
    }
    if (places.empty()) continue;
    const int rank = row * grid.data;
    Model model(config.model, places, place_experts(config.model, config.parallel, grid.expert),
                grid.expert_rank(rank));
    const OptimizerShards shards(model, routes, grid, rank, /*sharded=*/true);
    for (const auto& stage : model.stages()) {
      const auto rows = static_cast<int>(routes.rows_of(stage->place().index).size());
      StageShares& shares = of_role.at(role_of(config, routes, stage->place()));
      shares.shared_ranks = grid.data * rows;
      shares.expert_ranks = grid.data / grid.expert * rows;
      for (int bucket = 0; bucket < stage->num_buckets(); ++bucket) {
        shares.shared.push_back(share_of(*stage, bucket, Placement::shared, shards, shares.shared_ranks));
        shares.expert.push_back(share_of(*stage, bucket, Placement::expert, shards, shares.expert_ranks));
      }
    }
  }
  std::vector<StageShares> all;
  for (int stage = 0; stage < routes.num_stages(); ++stage) {
    all.push_back(of_role.at(role_of(config, routes, routes.place_of(stage))));
  }
  return all;
}

}  // namespace cadre
