// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/plan.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Rows and slots by destination rank. What is counted and placed are replicas; without any they are the experts.
void count(std::span<const int32_t> replicas, const ExpertMap& map, DispatchPlan& plan) {
  const auto num_ranks = static_cast<size_t>(map.num_ranks());
  plan.row_counts.assign(num_ranks, 0);
  plan.slot_counts.assign(num_ranks, 0);
  std::vector<int64_t> last_token(num_ranks, -1);
  const int32_t* replica = replicas.data();
  for (int64_t token = 0; token < plan.num_tokens; ++token) {
    for (int k = 0; k < plan.top_k; ++k, ++replica) {
      if (*replica < 0 || *replica >= map.num_replicas()) {
        if (*replica != -1) refuse_expert(token, *replica, map.num_experts());
        ++plan.num_dropped;
        continue;
      }
      const auto rank = static_cast<size_t>(map.replica_rank(*replica));
      plan.row_counts[rank] += last_token[rank] != token ? 1 : 0;
      last_token[rank] = token;
      ++plan.slot_counts[rank];
    }
  }
  plan.row_offsets = offsets_of(plan.row_counts);
  plan.slot_offsets = offsets_of(plan.slot_counts);
}

// Puts every slot where it belongs. Tokens are visited in order, so each rank's rows come out in token order.
void place(std::span<const int32_t> replicas, const ExpertMap& map, DispatchPlan& plan) {
  const auto num_rows = static_cast<size_t>(plan.row_offsets.back());
  const auto num_slots = static_cast<size_t>(plan.slot_offsets.back());
  const auto num_tokens = static_cast<size_t>(plan.num_tokens);
  plan.row_token.resize(num_rows);
  plan.row_slots.resize(num_rows + 1);
  plan.row_slots[num_rows] = static_cast<int32_t>(num_slots);
  plan.slots.resize(num_slots);
  plan.slot_expert.resize(num_slots);
  plan.token_rows.resize(num_tokens + 1);
  plan.token_row.resize(num_rows);
  plan.token_slots.resize(num_tokens + 1);
  plan.token_slot.resize(num_slots);

  // Where the next row and slot of each rank go.
  struct Next {
    int32_t row, slot;
  };
  std::vector<Next> next;
  for (int rank = 0; rank < map.num_ranks(); ++rank) {
    next.push_back({static_cast<int32_t>(plan.row_offsets[rank]), static_cast<int32_t>(plan.slot_offsets[rank])});
  }
  std::vector<uint64_t> ranks((next.size() + 63) / 64, 0);  // that the token goes to, a bit each
  int32_t* const row_token = plan.row_token.data();
  int32_t* const row_slots = plan.row_slots.data();
  int32_t* const slots = plan.slots.data();
  int32_t* token_row = plan.token_row.data();
  int32_t* token_slot = plan.token_slot.data();
  int32_t num_rows_placed = 0;
  int32_t num_slots_placed = 0;
  for (int32_t token = 0; token < plan.num_tokens; ++token) {
    plan.token_rows[token] = num_rows_placed;
    plan.token_slots[token] = num_slots_placed;
    const int32_t first_slot = token * plan.top_k;
    for (int32_t slot = first_slot; slot < first_slot + plan.top_k; ++slot) {
      if (replicas[slot] < 0) continue;
      const int rank = map.replica_rank(replicas[slot]);
      ranks[static_cast<size_t>(rank) / 64] |= uint64_t{1} << (rank % 64);
    }
    // Bits, not branches: which rank comes next is as random as the routing.
    for (size_t word = 0; word < ranks.size(); ++word) {
      for (; ranks[word] != 0; ranks[word] &= ranks[word] - 1) {
        Next& to = next[word * 64 + static_cast<size_t>(std::countr_zero(ranks[word]))];
        row_token[to.row] = token;
        row_slots[to.row] = to.slot;
        token_row[num_rows_placed++] = to.row++;
      }
    }
    for (int32_t slot = first_slot; slot < first_slot + plan.top_k; ++slot) {
      if (replicas[slot] < 0) continue;
      Next& to = next[static_cast<size_t>(map.replica_rank(replicas[slot]))];
      slots[to.slot] = slot;
      token_slot[num_slots_placed++] = to.slot++;
    }
  }
  for (size_t i = 0; i < num_slots; ++i) plan.slot_expert[i] = map.replica_index(replicas[slots[i]]);
  plan.token_rows[num_tokens] = static_cast<int32_t>(num_rows);
  plan.token_slots[num_tokens] = static_cast<int32_t>(num_slots);
}

}  // namespace

void refuse_expert(int64_t token, int32_t expert, int num_experts) {
  throw Error(ErrorKind::input, fmt::format("token {} is routed to expert {}, allowed are -1 (none) to {}", token,
                                            expert, num_experts - 1));
}

std::vector<int64_t> offsets_of(std::span<const int64_t> counts) {
  std::vector<int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

std::vector<int32_t> choose_replicas(std::span<const int32_t> expert_ids, int top_k, const ExpertMap& map,
                                     int source_rank) {
  std::vector<int32_t> seen(static_cast<size_t>(map.num_experts()), 0);  // slots of each expert
  std::vector<int32_t> replicas(expert_ids.begin(), expert_ids.end());
  for (size_t slot = 0; slot < replicas.size(); ++slot) {
    const int32_t expert = replicas[slot];
    if (expert == -1) continue;
    if (expert < 0 || expert >= map.num_experts())
      refuse_expert(static_cast<int64_t>(slot) / top_k, expert, map.num_experts());
    const int first = map.first_replica(expert);
    const int count = map.first_replica(expert + 1) - first;
    replicas[slot] = count == 1 ? first : first + (source_rank + seen[expert]++) % count;
  }
  return replicas;
}

DispatchPlan make_dispatch_plan(std::span<const int32_t> expert_ids, int top_k, const ExpertMap& map, int source_rank) {
  if (map.num_replicas() == map.num_experts()) return make_replica_plan(expert_ids, top_k, map);
  return make_replica_plan(choose_replicas(expert_ids, top_k, map, source_rank), top_k, map);
}

DispatchPlan make_replica_plan(std::span<const int32_t> replicas, int top_k, const ExpertMap& map) {
  CADRE_CHECK(top_k >= 1 && replicas.size() % static_cast<size_t>(top_k) == 0,
              fmt::format("{} expert ids are no whole number of tokens with top-k {}", replicas.size(), top_k));
  checked_int(replicas.size(), "tokens x top-k to dispatch");  // indices of rows and slots are 32 bits wide
  DispatchPlan plan;
  plan.top_k = top_k;
  plan.num_tokens = static_cast<int64_t>(replicas.size()) / top_k;
  count(replicas, map, plan);
  place(replicas, map, plan);
  return plan;
}

std::string DispatchPlan::describe() const {
  std::string text = fmt::format("{} tokens, top-{}, {} rows, {} slots, {} dropped\n", num_tokens, top_k, num_rows(),
                                 num_slots(), num_dropped);
  for (size_t rank = 0; rank < row_counts.size(); ++rank) {
    text += fmt::format("  to rank {}: {} rows, {} slots\n", rank, row_counts[rank], slot_counts[rank]);
  }
  return text;
}

ExpertBatch make_expert_batch(std::span<const int32_t> row_slot_counts, std::span<const int32_t> slot_expert,
                              int num_local_experts) {
  ExpertBatch batch;
  batch.expert_offsets.assign(static_cast<size_t>(num_local_experts) + 1, 0);
  for (const int32_t expert : slot_expert) {
    CADRE_CHECK_PEER(expert >= 0 && expert < num_local_experts,
                     fmt::format("received a row for local expert {}, this rank has {}", expert, num_local_experts));
    ++batch.expert_offsets[expert + 1];
  }
  std::partial_sum(batch.expert_offsets.begin(), batch.expert_offsets.end(), batch.expert_offsets.begin());

  std::vector<int32_t> next(batch.expert_offsets.begin(), batch.expert_offsets.end() - 1);
  const size_t num_slots = slot_expert.size();
  int64_t announced = 0;
  for (const int32_t count : row_slot_counts) announced += count;
  const bool counts_fit = announced == static_cast<int64_t>(num_slots) &&
                          std::ranges::all_of(row_slot_counts, [](int32_t count) { return count >= 0; });
  CADRE_CHECK_PEER(counts_fit, fmt::format("rows announce {} slots and {} came", announced, num_slots));
  batch.place_row.resize(num_slots);
  batch.place_slot.resize(num_slots);
  batch.row_place.resize(num_slots);
  batch.slot_row.resize(num_slots);
  batch.row_places.reserve(row_slot_counts.size() + 1);
  size_t slot = 0;
  for (size_t row = 0; row < row_slot_counts.size(); ++row) {
    batch.row_places.push_back(static_cast<int32_t>(slot));
    for (int32_t i = 0; i < row_slot_counts[row]; ++i, ++slot) {
      const int32_t at = next[static_cast<size_t>(slot_expert[slot])]++;
      batch.place_row[at] = static_cast<int32_t>(row);
      batch.place_slot[at] = static_cast<int32_t>(slot);
      batch.row_place[slot] = at;
      batch.slot_row[slot] = static_cast<int32_t>(row);
    }
  }
  batch.row_places.push_back(static_cast<int32_t>(slot));
  return batch;
}

}  // namespace cadre
