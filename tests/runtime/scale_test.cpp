// SPDX-License-Identifier: Apache-2.0
// What grows with the number of ranks P, and how, as values of one rank of jobs of up to 4,096. runtime/scale.md has the table; who
// watches whom is in tests/comm/watch_graph_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "comm/exchange/hierarchical.hpp"
#include "comm/group/reduction_queue.hpp"
#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"
#include "comm/liveness/handshake.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/observe/step_metrics.hpp"
#include "runtime/parallel/optimizer_shards.hpp"
#include "runtime/schedule/make_program.hpp"
#include "tests/support/files.hpp"
#include "tests/support/lone_rank.hpp"

namespace cadre::scale_test {
namespace {

using test::CountedBytes;
using test::LoneRank;

constexpr std::array kSizes = {64, 512, 4096};
constexpr int kTokens = 256;
constexpr int kTopK = 8;

// Each token to kTopK experts of as many as there are ranks, one a rank.
DispatchPlan plan_of(int num_ranks) {
  std::vector<int32_t> ids;
  for (int token = 0; token < kTokens; ++token) {
    for (int k = 0; k < kTopK; ++k) ids.push_back((token * 31 + k * 7) % num_ranks);
  }
  return make_dispatch_plan(ids, kTopK, ExpertMap::contiguous(num_ranks, num_ranks));
}

size_t elements_of(const DispatchPlan& plan) {
  return plan.row_counts.size() + plan.row_offsets.size() + plan.slot_counts.size() + plan.slot_offsets.size() +
         plan.row_token.size() + plan.row_slots.size() + plan.slots.size() + plan.slot_expert.size() +
         plan.token_rows.size() + plan.token_row.size() + plan.token_slots.size() + plan.token_slot.size();
}

// Counts and offsets of rows and slots by rank, 4 P + 2; rows three times and slots three times, and the tokens twice.
TEST(Scale, a_plan_has_four_numbers_a_rank) {
  for (const int num_ranks : kSizes) {
    const size_t slots = static_cast<size_t>(kTokens) * kTopK;
    EXPECT_EQ(elements_of(plan_of(num_ranks)),
              static_cast<size_t>(4 * num_ranks + 2) + (3 * slots + 1) + 3 * slots + 2 * (kTokens + 1));
  }
}

// 3 numbers of 8 bytes for each peer; then rows go in as many messages as there are ranks that need some.
TEST(Scale, an_exchange_announces_24_bytes_to_each_peer_and_sends_to_those_that_need_rows) {
  for (const int num_ranks : kSizes) {
    JobContext job;
    CountedBytes counted;
    const Communicator group(std::make_unique<LoneRank>(job, 1, num_ranks, counted), "group");
    const auto exchange = make_exchange("flat", {.group = group,
                                                 .topology = Topology::uniform(num_ranks / 8, 8),
                                                 .max_tokens = kTokens,
                                                 .top_k = kTopK,
                                                 .max_row_bytes = 64});
    const auto route = exchange->route(plan_of(num_ranks));
    counted = {};
    wait(route->announce());
    EXPECT_EQ(counted.operations, 1);
    EXPECT_EQ(counted.given, 24 * num_ranks);
    EXPECT_EQ(counted.memory, 2 * 24 * num_ranks);
    route->learn_counts();
    const auto transfer = route->transfer(Direction::to_experts, Unit::row, {DType::f32, 16});
    std::vector<float> rows(static_cast<size_t>(kTokens) * 16);
    transfer->pack({reinterpret_cast<const std::byte*>(rows.data()), 64, route->plan().row_token});
    counted = {};
    transfer->start();
    wait(transfer->finish());
    EXPECT_EQ(counted.operations, 1);
    const auto needed = std::ranges::count_if(route->plan().row_counts, [](int64_t count) { return count > 0; });
    EXPECT_EQ(counted.messages, needed - (route->plan().row_counts[1] > 0 ? 1 : 0)) << "its own rows stay";
    EXPECT_LE(counted.messages, kTokens * kTopK);
    wait(transfer->release());
  }
}

TEST(Scale, rows_between_hosts_go_to_one_rank_of_each) {
  for (const int num_ranks : kSizes) {
    const int hosts = num_ranks / 8;
    const HostMap map(Topology::uniform(hosts, 8), 9);
    EXPECT_EQ(map.landing_sources().size(), static_cast<size_t>(hosts - 1));
    const HostRows rows = make_host_rows(plan_of(num_ranks), map, NeedMask(8).words());
    EXPECT_EQ(rows.counts.size(), static_cast<size_t>(hosts));
    EXPECT_LE(rows.token.size(), static_cast<size_t>(kTokens) * kTopK);
    EXPECT_EQ(rows.needs.size(), rows.token.size());
  }
}

// Of the two ranks of a message, its direction and its tag, no message has the same as another.
TEST(Scale, tags_are_below_two_a_micro_batch_in_any_pipeline) {
  for (const std::string schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
    for (const int num_ranks : {2, 16, 64}) {
      SCOPED_TRACE(schedule + " on " + std::to_string(num_ranks));
      const int micro_batches = 2 * num_ranks;
      const Program program = make_program(schedule, num_ranks, micro_batches);
      std::map<std::pair<int, int>, std::set<int>> tags;
      for (int rank = 0; rank < num_ranks; ++rank) {
        for (const Op& op : program.ops[static_cast<size_t>(rank)]) {
          if (op.kind != OpKind::send) continue;
          const int tag = tag_of(program, op.feeds);
          EXPECT_GE(tag, 0);
          EXPECT_LT(tag, 2 * micro_batches);
          EXPECT_TRUE((tags[{rank, op.peer}].insert(tag).second)) << name_of(program, op);
        }
      }
    }
  }
}

// A rank and its groups: of the pipeline, its row, of its experts, and those with the same experts.
TEST(Scale, the_groups_of_a_rank_have_together_less_than_two_members_a_rank_of_the_job) {
  for (const int num_ranks : kSizes) {
    const Grid grid = Grid::make(num_ranks, 16, std::min(64, num_ranks / 16));
    for (const int rank : {0, num_ranks / 2 + 1, num_ranks - 1}) {
      int members = 0;
      for (int other = 0; other < num_ranks; ++other) {
        members += grid.pipeline_group(other) == grid.pipeline_group(rank) ? 1 : 0;
        members += grid.data_group(other) == grid.data_group(rank) ? 1 : 0;
        members += grid.expert_group(other) == grid.expert_group(rank) ? 1 : 0;
        const bool same_experts = grid.expert_rank(other) == grid.expert_rank(rank);
        members += grid.data_group(other) == grid.data_group(rank) && same_experts ? 1 : 0;
      }
      EXPECT_EQ(members, 16 + grid.data + grid.expert + grid.data / grid.expert);
      EXPECT_LT(members, 2 * num_ranks);
    }
  }
}

TEST(Scale, a_topology_has_two_numbers_a_rank_and_a_name_a_host) {
  for (const int num_ranks : kSizes) {
    JobContext job;
    CountedBytes counted;
    const Communicator group(std::make_unique<LoneRank>(job, 1, num_ranks, counted), "group");
    const Topology topology = discover_topology(group);
    EXPECT_EQ(counted.given, 256);
    EXPECT_EQ(counted.memory, 256 * (num_ranks + 1));
    EXPECT_EQ(topology.num_ranks(), num_ranks);
  }
  std::vector<int> leaders;
  std::vector<std::string> names;
  for (int rank = 0; rank < 4096; ++rank) {
    leaders.push_back(rank % 1024);
    names.push_back(std::to_string(rank % 1024));
  }
  const Topology topology = Topology::from_leaders(leaders, names);
  EXPECT_EQ(topology.num_hosts(), 1024);
  EXPECT_EQ(topology.host_of_rank[4095], 1023);
  EXPECT_EQ(topology.local_rank[4095], 3);
  EXPECT_EQ(topology.host_names[7], "7");
}

// A contact and a text of 256 bytes go out once each, whatever comes of the connections; here no peer listens.
TEST(Scale, a_start_gathers_the_same_bytes_of_each_rank) {
  std::vector<size_t> given;
  for (const int num_ranks : kSizes) {
    int calls = 0;
    size_t bytes = 0;
    const GatherBytes gather = [&](std::span<const std::byte> mine) {
      ++calls;
      bytes += mine.size();
      std::vector<std::byte> all(mine.size() * static_cast<size_t>(num_ranks));
      for (size_t at = 0; at < all.size(); at += mine.size())
        std::ranges::copy(mine, all.begin() + static_cast<int64_t>(at));
      return all;
    };
    const Neighbourhood made = connect_neighbours(0, num_ranks, gather, 0.0);
    EXPECT_EQ(made.members.size(), static_cast<size_t>(num_ranks));
    EXPECT_EQ(calls, 2);
    given.push_back(bytes);
  }
  EXPECT_EQ(given.front(), given.back());
  EXPECT_LT(given.back(), 1024U);
}

// Of an array that one rank has, every P-th part goes to each other rank, and its own part once more. Pieces have 32 KiB for each
// rank at least, and of few ranks 1 MiB together.
TEST(Scale, new_values_leave_their_rank_twice_at_most_in_long_messages) {
  constexpr int64_t kElements = 1 << 20;
  for (const int num_ranks : kSizes) {
    JobContext job;
    CountedBytes counted;
    const Communicator group(std::make_unique<LoneRank>(job, 0, num_ranks, counted), "group");
    ReductionQueue queue(group);
    RankSlices slices(static_cast<size_t>(num_ranks) + 1, kElements);
    slices[0] = 0;
    const auto values = std::make_shared<std::vector<float>>(kElements);
    counted = {};
    Request request = queue.all_gather(*values, values, slices);
    wait(request);
    const int64_t part = kElements / num_ranks;
    EXPECT_EQ(counted.given, 4 * (num_ranks - 1) * (part + part));
    EXPECT_LT(counted.given, 2 * 4 * kElements);
    EXPECT_EQ(ReductionQueue::piece_elements(num_ranks), num_ranks * 8192);
    EXPECT_EQ(ReductionQueue::most_bytes(num_ranks),
              std::max(size_t{16} << 20, 2 * 32768 * static_cast<size_t>(num_ranks)));
  }
  EXPECT_EQ(ReductionQueue::piece_elements(4), 1 << 18);
  EXPECT_EQ(ReductionQueue::most_bytes(4), ReductionQueue::kMostBytes);
}

// 8 sums and a flag; E counts and 1 of dropped slots of each of L layers; L + 3 numbers a rank.
TEST(Scale, metrics_are_one_sum_of_a_few_numbers_a_rank) {
  constexpr size_t kLayers = 58;
  constexpr size_t kExperts = 256;
  for (const int num_ranks : kSizes) {
    JobContext job;
    CountedBytes counted;
    const Communicator world(std::make_unique<LoneRank>(job, 1, num_ranks, counted), "world");
    LocalStep local;
    local.expert_counts.assign(kLayers, std::vector<int64_t>(kExperts, 0));
    local.slots_dropped.assign(kLayers, 0);
    local.slots_received.assign(kLayers, 0);
    StepReduction reduction(world, local);
    wait(reduction.request());
    EXPECT_EQ(counted.operations, 1);
    const size_t numbers = 9 + kLayers * (kExperts + 1) + (kLayers + 3) * static_cast<size_t>(num_ranks);
    EXPECT_EQ(counted.given, static_cast<int64_t>(8 * numbers));
    EXPECT_EQ(reduction.finish().device_slots.size(), static_cast<size_t>(num_ranks));
  }
}

// Two files of each rank that writes, and what describes them.
TEST(Scale, a_manifest_has_two_files_a_rank) {
  const test::TemporaryDirectory folder;
  std::vector<size_t> bytes;
  for (const int num_ranks : kSizes) {
    Manifest manifest;
    for (int rank = 0; rank < num_ranks; ++rank) {
      for (const std::string part : {"", "optimizer/"}) {
        manifest.files[part + "model-" + std::to_string(10000 + rank)] = {.bytes = 1000000000000,
                                                                          .xxh64 = ~uint64_t{0}};
      }
    }
    write_manifest(folder.path(), manifest);
    bytes.push_back(std::filesystem::file_size(folder.path() / kManifestFile));
    EXPECT_EQ(read_manifest(folder.path()), manifest);
  }
  const size_t of_rank = (bytes[2] - bytes[0]) / (4096 - 64);
  EXPECT_EQ((bytes[1] - bytes[0]) / (512 - 64), of_rank) << "the same for each rank";
  EXPECT_LT(of_rank, 200U);
}

// The largest parameters first, each to the rank that keeps least and stands first: held against a search for it.
TEST(Scale, parameters_are_shared_out_over_any_number_of_ranks) {
  for (const int num_ranks : kSizes) {
    std::vector<int64_t> sizes;
    for (int64_t i = 0; i < 3 * num_ranks; ++i) sizes.push_back(1 + i * i % 97);
    std::vector<int64_t> kept(static_cast<size_t>(num_ranks), 0);
    kept[0] = 50;
    std::vector<int64_t> expected = kept;
    const std::vector<int> owners = share_out(sizes, kept);
    std::vector<size_t> order(sizes.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return sizes[a] > sizes[b]; });
    for (const size_t i : order) {
      const auto least = std::ranges::min_element(expected);
      ASSERT_EQ(owners[i], least - expected.begin()) << i;
      *least += sizes[i];
    }
    EXPECT_EQ(kept, expected);
  }
}

}  // namespace
}  // namespace cadre::scale_test
