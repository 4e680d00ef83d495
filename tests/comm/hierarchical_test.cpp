// SPDX-License-Identifier: Apache-2.0
// The part of a route between hosts: who lands where and who needs what, for layouts of up to 1,024 ranks in one process;
// and that what crosses between hosts is what the plans of all ranks predict, to the byte.
#include "comm/exchange/hierarchical.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "comm/base/random.hpp"
#include "comm/job/wait.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::hierarchical_test {
namespace {

// --- layouts --------------------------------------------------------------------------------------------------------

struct Layout {
  const char* name;
  Topology topology;
};

// Host h of `sizes` has sizes[h] ranks, filled host by host.
Topology hosts_of(const std::vector<int>& sizes) {
  std::vector<int> leaders;
  for (size_t host = 0; host < sizes.size(); ++host)
    leaders.insert(leaders.end(), static_cast<size_t>(sizes[host]), static_cast<int>(host));
  return Topology::from_leaders(leaders, std::vector<std::string>(leaders.size(), "host"));
}

// Rank r on a host drawn at random: uneven, and no two neighbours need share one.
Topology dealt_out(int num_ranks, int num_hosts) {
  const Random random(5, "hosts", 0);
  std::vector<int> leaders;
  for (int rank = 0; rank < num_ranks; ++rank) {
    leaders.push_back(static_cast<int>(random.below(static_cast<uint64_t>(num_hosts), static_cast<uint64_t>(rank))));
  }
  return Topology::from_leaders(leaders, std::vector<std::string>(leaders.size(), "host"));
}

std::vector<Layout> layouts() {
  return {{"one rank", Topology::uniform(1, 1)},
          {"one host", Topology::uniform(1, 8)},
          {"a host a rank", Topology::uniform(8, 1)},
          {"three hosts of two", Topology::uniform(3, 2)},
          {"one, three and two", hosts_of({1, 3, 2})},
          {"two and seventy", hosts_of({2, 70})},
          {"nine ranks dealt out", dealt_out(9, 3)},
          {"1,024 ranks, hosts of 8", Topology::uniform(128, 8)},
          {"1,024 ranks, two hosts", Topology::uniform(2, 512)},
          {"1,024 ranks dealt out", dealt_out(1024, 40)}};
}

std::vector<HostMap> maps_of(const Topology& topology) {
  std::vector<HostMap> maps;
  for (int rank = 0; rank < topology.num_ranks(); ++rank) maps.emplace_back(topology, rank);
  return maps;
}

TEST(HostMap, equals_the_worked_examples) {
  const HostMap map(Topology::uniform(2, 2), 3);
  EXPECT_EQ(map.host(), 1);
  EXPECT_EQ(map.neighbours(), (std::vector<int>{2, 3}));
  EXPECT_EQ(map.landing_rank(1, 1), 3);
  EXPECT_EQ(map.landing_sources(), (std::vector<int>{1}));

  // Hosts {0}, {1, 2, 3}, {4, 5}: rank 3 is the third of its host and lands on the first of a host of two.
  const Topology uneven = hosts_of({1, 3, 2});
  EXPECT_EQ(HostMap(uneven, 0).landing_sources(), (std::vector<int>{1, 2, 3, 4, 5}));
  EXPECT_EQ(HostMap(uneven, 1).landing_sources(), (std::vector<int>{0, 4}));
  EXPECT_EQ(HostMap(uneven, 2).landing_sources(), (std::vector<int>{5}));
  EXPECT_EQ(HostMap(uneven, 3).landing_sources(), (std::vector<int>{}));
  EXPECT_EQ(HostMap(uneven, 4).landing_sources(), (std::vector<int>{0, 1, 3}));
  EXPECT_EQ(HostMap(uneven, 5).landing_sources(), (std::vector<int>{2}));
}

// All ranks see the same map; the rows of every rank land on exactly one rank of each other host; and a rank has at most
// one source more from a host than its neighbours.
TEST(HostMap, every_rank_lands_once_on_every_other_host) {
  for (const auto& [name, topology] : layouts()) {
    SCOPED_TRACE(name);
    const std::vector<HostMap> maps = maps_of(topology);
    std::vector<std::set<int>> reached(maps.size());  // hosts that each source lands on
    for (int rank = 0; rank < topology.num_ranks(); ++rank) {
      const std::vector<int>& sources = maps[static_cast<size_t>(rank)].landing_sources();
      EXPECT_TRUE(std::is_sorted(sources.begin(), sources.end()));
      for (const int source : sources) {
        ASSERT_NE(topology.host_of_rank[source], topology.host_of_rank[rank]);
        ASSERT_TRUE(reached[static_cast<size_t>(source)].insert(topology.host_of_rank[rank]).second);
        ASSERT_EQ(maps[static_cast<size_t>(source)].landing_rank(source, topology.host_of_rank[rank]), rank);
      }
    }
    for (const std::set<int>& hosts : reached) ASSERT_EQ(static_cast<int>(hosts.size()), topology.num_hosts() - 1);
    for (int host = 0; host < topology.num_hosts(); ++host) {
      for (int other = 0; other < topology.num_hosts(); ++other) {
        if (other == host) continue;
        std::vector<int> num_sources;
        for (const int rank : maps[0].ranks_of_host(host)) {
          const std::vector<int>& sources = maps[static_cast<size_t>(rank)].landing_sources();
          num_sources.push_back(static_cast<int>(
              std::count_if(sources.begin(), sources.end(), [&](int s) { return topology.host_of_rank[s] == other; })));
        }
        const auto [least, most] = std::minmax_element(num_sources.begin(), num_sources.end());
        ASSERT_LE(*most - *least, 1);
      }
    }
  }
}

// --- rows and masks -------------------------------------------------------------------------------------------------

TEST(NeedMask, sets_and_finds_bits_of_any_word) {
  EXPECT_EQ(NeedMask(1).words(), 1U);
  EXPECT_EQ(NeedMask(64).words(), 1U);
  EXPECT_EQ(NeedMask(65).words(), 2U);
  EXPECT_EQ(NeedMask(512).words(), 8U);
  std::vector<uint64_t> mask(NeedMask(200).words(), 0);
  const std::set<int> wanted = {0, 1, 31, 32, 62, 63, 64, 65, 127, 128, 199};
  for (const int rank : wanted) NeedMask::set(mask.data(), rank);
  for (int rank = 0; rank < 200; ++rank) EXPECT_EQ(NeedMask::get(mask.data(), rank), wanted.count(rank) == 1) << rank;
}

// Experts of a rank's tokens, about one in eight masked; some tokens have none.
std::vector<int32_t> routing_of(int rank, int64_t num_tokens, int top_k, int num_experts) {
  std::vector<int32_t> ids;
  for (int64_t token = 0; token < num_tokens; ++token) {
    const Random random(11, "routing", static_cast<uint64_t>(rank * 1000 + token));
    const auto first = random.below(static_cast<uint64_t>(num_experts), 0);
    const auto step = 1 + random.below(3, 1);
    for (int k = 0; k < top_k; ++k) {
      const auto expert = (first + static_cast<uint64_t>(k) * step) % static_cast<uint64_t>(num_experts);
      const bool masked = token % 9 == 4 || random.below(8, static_cast<uint64_t>(2 + k)) == 0;
      ids.push_back(masked ? -1 : static_cast<int32_t>(expert));
    }
  }
  return ids;
}

int64_t tokens_of(int rank) { return rank == 0 ? 0 : 5 + rank % 7 * 3; }

size_t words_of(const Topology& topology) {
  int largest = 0;
  for (int host = 0; host < topology.num_hosts(); ++host) largest = std::max(largest, topology.ranks_on_host(host));
  return NeedMask(largest).words();
}

// For every rank and host: the tokens that have an expert there, once, in order, and the ranks that hold one of them.
TEST(HostRows, say_once_a_host_who_needs_each_token) {
  for (const auto& [name, topology] : layouts()) {
    SCOPED_TRACE(name);
    const int num_experts = 2 * topology.num_ranks() + 3;
    const ExpertMap experts = ExpertMap::contiguous(num_experts, topology.num_ranks());
    const size_t words = words_of(topology);
    for (int rank = 0; rank < topology.num_ranks(); rank += 1 + topology.num_ranks() / 100) {
      const int top_k = std::min(6, num_experts);
      const std::vector<int32_t> ids = routing_of(rank, tokens_of(rank), top_k, num_experts);
      const HostMap map(topology, rank);
      const HostRows rows = make_host_rows(make_dispatch_plan(ids, top_k, experts), map, words);
      ASSERT_EQ(rows.counts.size(), static_cast<size_t>(topology.num_hosts()));
      size_t next = 0;
      for (int host = 0; host < topology.num_hosts(); ++host) {
        ASSERT_EQ(rows.offsets[static_cast<size_t>(host)], static_cast<int64_t>(next));
        for (int64_t token = 0; host != map.host() && token < tokens_of(rank); ++token) {
          std::set<int> needed_by;  // local ranks
          for (int k = 0; k < top_k; ++k) {
            const int32_t expert = ids[static_cast<size_t>(token * top_k + k)];
            if (expert < 0 || map.host_of(experts.owner(expert)) != host) continue;
            needed_by.insert(map.local_rank_of(experts.owner(expert)));
          }
          if (needed_by.empty()) continue;
          ASSERT_LT(next, rows.token.size());
          ASSERT_EQ(rows.token[next], token);
          for (int local = 0; local < topology.ranks_on_host(host); ++local) {
            ASSERT_EQ(NeedMask::get(rows.needs.data() + next * words, local), needed_by.count(local) == 1);
          }
          ++next;
        }
        ASSERT_EQ(rows.offsets[static_cast<size_t>(host) + 1], static_cast<int64_t>(next));
        ASSERT_EQ(rows.offsets[static_cast<size_t>(host)] + rows.counts[static_cast<size_t>(host)],
                  static_cast<int64_t>(next));
      }
      ASSERT_EQ(rows.token.size(), next);
      ASSERT_EQ(rows.needs.size(), next * words);
    }
  }
}

// --- bytes between hosts --------------------------------------------------------------------------------------------

constexpr int64_t kWidth = 33;  // of a row, in floats

struct Routing {
  int num_experts;
  int top_k;
};

// The plans of all ranks, which every rank can make.
std::vector<DispatchPlan> plans_of(const Routing& routing, int num_ranks) {
  const ExpertMap experts = ExpertMap::contiguous(routing.num_experts, num_ranks);
  std::vector<DispatchPlan> plans;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::vector<int32_t> ids = routing_of(rank, tokens_of(rank), routing.top_k, routing.num_experts);
    plans.push_back(make_dispatch_plan(ids, routing.top_k, experts));
  }
  return plans;
}

// Bytes that leave the host of `rank` with its rows for experts, with masks where they are sent; and with its sums home.
struct Predicted {
  int64_t rows_there = 0;
  int64_t masks = 0;
  int64_t sums_home = 0;
  int64_t slots_home = 0;
};

struct WireBytes {
  int64_t there;
  int64_t home;
};

Predicted predict(bool hierarchical, const std::vector<DispatchPlan>& plans, const Topology& topology, int rank,
                  WireBytes bytes) {
  Predicted predicted;
  const HostMap map(topology, rank);
  const auto words = static_cast<int64_t>(words_of(topology));
  for (int other = 0; other < topology.num_ranks(); ++other) {
    if (map.host_of(other) == map.host()) continue;
    const auto from_other = static_cast<size_t>(rank);
    predicted.slots_home += bytes.home * plans[static_cast<size_t>(other)].slot_counts[from_other];
    if (hierarchical) continue;
    predicted.rows_there += bytes.there * plans[from_other].row_counts[static_cast<size_t>(other)];
    predicted.sums_home += bytes.home * plans[static_cast<size_t>(other)].row_counts[from_other];
  }
  if (!hierarchical) return predicted;
  // Tokens of `source` with an expert on `host`, each counted once.
  const auto tokens_for = [&](int source, int host) {
    const DispatchPlan& plan = plans[static_cast<size_t>(source)];
    std::set<int32_t> tokens;
    for (int peer = 0; peer < topology.num_ranks(); ++peer) {
      if (map.host_of(peer) != host) continue;
      const auto first = plan.row_token.begin() + plan.row_offsets[static_cast<size_t>(peer)];
      tokens.insert(first, first + plan.row_counts[static_cast<size_t>(peer)]);
    }
    return static_cast<int64_t>(tokens.size());
  };
  for (int host = 0; host < topology.num_hosts(); ++host) {
    if (host == map.host()) continue;
    predicted.rows_there += bytes.there * tokens_for(rank, host);
    predicted.masks += words * static_cast<int64_t>(sizeof(uint64_t)) * tokens_for(rank, host);
  }
  for (const int source : map.landing_sources()) predicted.sums_home += bytes.home * tokens_for(source, map.host());
  return predicted;
}

// Bytes that leave the host while one transfer runs, with rows of zeros.
int64_t bytes_between_hosts(const Exchange& exchange, const std::unique_ptr<Route>& route, Direction direction,
                            Unit unit, Wire wire) {
  const RowFormat format = {DType::f32, kWidth, wire};
  const int64_t count = std::max(route->sides(direction, unit).out.total(), route->plan().num_tokens);
  const std::vector<float> zeros(static_cast<size_t>(count * kWidth), 0.0F);
  const Traffic before = exchange.traffic();
  const auto transfer = route->transfer(direction, unit, format);
  const bool by_token = direction == Direction::to_experts;
  transfer->pack({reinterpret_cast<const std::byte*>(zeros.data()), format.row_bytes(),
                  by_token ? std::span<const int32_t>(route->plan().row_token) : std::span<const int32_t>()});
  transfer->start();
  wait(transfer->finish());
  static_cast<void>(transfer->unpack());
  wait(transfer->release());
  return (exchange.traffic() - before).between_hosts;
}

void expect_predicted_bytes(Communicator& world, const Topology& topology, const Routing& routing, Wire wire_there,
                            Wire wire_home) {
  const std::vector<DispatchPlan> plans = plans_of(routing, world.size());
  const WireBytes bytes = {static_cast<int64_t>(RowFormat{DType::f32, kWidth, wire_there}.wire_bytes()),
                           static_cast<int64_t>(RowFormat{DType::f32, kWidth, wire_home}.wire_bytes())};
  std::vector<int64_t> totals;  // of all ranks: flat there and home, hierarchical there and home
  for (const bool hierarchical : {false, true}) {
    SCOPED_TRACE(hierarchical ? "hierarchical" : "flat");
    const Predicted predicted = predict(hierarchical, plans, topology, world.rank(), bytes);
    const auto exchange =
        make_exchange(hierarchical ? "hierarchical" : "flat",
                      test::setup_of(world, topology,
                                     {.max_tokens = 64, .top_k = routing.top_k, .row_bytes = kWidth * sizeof(float)}));
    const auto route = exchange->route(plans[static_cast<size_t>(world.rank())]);
    Request& counts = route->announce();
    wait(counts);
    route->learn_counts();

    const auto there = [&] {
      return bytes_between_hosts(*exchange, route, Direction::to_experts, Unit::row, wire_there);
    };
    EXPECT_EQ(there(), predicted.rows_there + predicted.masks);
    EXPECT_EQ(there(), predicted.rows_there) << "the masks are known by now";
    EXPECT_EQ(bytes_between_hosts(*exchange, route, Direction::to_tokens, Unit::row, wire_home), predicted.sums_home);
    EXPECT_EQ(bytes_between_hosts(*exchange, route, Direction::to_tokens, Unit::slot, wire_home), predicted.slots_home);
    totals.push_back(predicted.rows_there + predicted.masks);
    totals.push_back(predicted.sums_home);
  }
  totals = wait(world.all_reduce(std::move(totals), ReduceOp::sum));
  if (routing.top_k < 4 || topology.num_hosts() == topology.num_ranks()) return;
  EXPECT_LT(totals[2], totals[0]) << "tokens go to several ranks of a host";
  EXPECT_LT(totals[3], totals[1]);
}

TEST(HostTraffic, is_what_the_plans_predict_to_the_byte) {
  const Layout cases[] = {
      {"two hosts of two", Topology::uniform(2, 2)},
      {"three hosts of two", Topology::uniform(3, 2)},
      {"one, three and two", hosts_of({1, 3, 2})},
      {"two and three", hosts_of({2, 3})},
      {"four ranks dealt out", Topology::from_leaders({0, 1, 1, 0}, std::vector<std::string>(4, "host"))},
      {"a host a rank", Topology::uniform(4, 1)}};
  for (const auto& [name, topology] : cases) {
    SCOPED_TRACE(name);
    const auto body = [&, &topology = topology](Communicator& world) {
      for (const Routing& routing : {Routing{16, 8}, Routing{13, 4}, Routing{7, 1}}) {
        for (const Wire wire : {Wire::same, Wire::bf16, Wire::fp8}) {
          SCOPED_TRACE(testing::Message()
                       << routing.num_experts << " experts, top-" << routing.top_k << ", " << name_of(wire));
          expect_predicted_bytes(world, topology, routing, wire, wire == Wire::fp8 ? Wire::bf16 : wire);
        }
      }
    };
    test::on_ranks(body, {topology.num_ranks()});
  }
}

}  // namespace
}  // namespace cadre::hierarchical_test
