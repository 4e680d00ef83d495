// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/plan.hpp"

#include <numeric>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

void check_experts(std::span<const int32_t> expert_ids, int top_k, const ExpertMap& map) {
  CADRE_CHECK(top_k >= 1 && expert_ids.size() % static_cast<size_t>(top_k) == 0,
              fmt::format("{} expert ids are no whole number of tokens with top-k {}", expert_ids.size(), top_k));
  checked_int(expert_ids.size(), "tokens x top-k to dispatch");  // indices of rows and slots are 32 bits wide
  for (size_t slot = 0; slot < expert_ids.size(); ++slot) {
    CADRE_CHECK(expert_ids[slot] >= -1 && expert_ids[slot] < map.num_experts(),
                fmt::format("token {} is routed to expert {}, allowed are -1 (none) to {}",
                            slot / static_cast<size_t>(top_k), expert_ids[slot], map.num_experts() - 1));
  }
}

// Rows and slots by destination rank.
void count(std::span<const int32_t> expert_ids, const ExpertMap& map, DispatchPlan& plan) {
  const auto num_ranks = static_cast<size_t>(map.num_ranks());
  plan.row_counts.assign(num_ranks, 0);
  plan.slot_counts.assign(num_ranks, 0);
  std::vector<int64_t> last_token(num_ranks, -1);
  for (size_t slot = 0; slot < expert_ids.size(); ++slot) {
    if (expert_ids[slot] < 0) {
      ++plan.num_dropped;
      continue;
    }
    const auto rank = static_cast<size_t>(map.owner(expert_ids[slot]));
    const auto token = static_cast<int64_t>(slot) / plan.top_k;
    if (last_token[rank] != token) ++plan.row_counts[rank];
    last_token[rank] = token;
    ++plan.slot_counts[rank];
  }
  plan.row_offsets = offsets_of(plan.row_counts);
  plan.slot_offsets = offsets_of(plan.slot_counts);
}

// Puts every slot where it belongs. Tokens are visited in order, so each rank's rows come out in token order.
void place(std::span<const int32_t> expert_ids, const ExpertMap& map, DispatchPlan& plan) {
  const auto num_rows = static_cast<size_t>(plan.row_offsets.back());
  const auto num_slots = static_cast<size_t>(plan.slot_offsets.back());
  plan.row_token.resize(num_rows);
  plan.row_slots.resize(num_rows + 1);
  plan.row_slots[num_rows] = static_cast<int32_t>(num_slots);
  plan.slots.resize(num_slots);
  plan.slot_expert.resize(num_slots);
  plan.token_slots.reserve(static_cast<size_t>(plan.num_tokens) + 1);
  plan.token_slot.reserve(num_slots);

  std::vector<int64_t> next_row(plan.row_offsets.begin(), plan.row_offsets.end() - 1);
  std::vector<int64_t> next_slot(plan.slot_offsets.begin(), plan.slot_offsets.end() - 1);
  std::vector<int64_t> last_token(static_cast<size_t>(map.num_ranks()), -1);
  for (int64_t token = 0; token < plan.num_tokens; ++token) {
    plan.token_slots.push_back(static_cast<int32_t>(plan.token_slot.size()));
    for (int64_t slot = token * plan.top_k; slot < (token + 1) * plan.top_k; ++slot) {
      const int32_t expert = expert_ids[slot];
      if (expert < 0) continue;
      const auto rank = static_cast<size_t>(map.owner(expert));
      const auto at = static_cast<size_t>(next_slot[rank]++);
      plan.slots[at] = static_cast<int32_t>(slot);
      plan.slot_expert[at] = map.local_index(expert);
      plan.token_slot.push_back(static_cast<int32_t>(at));
      if (last_token[rank] == token) continue;
      last_token[rank] = token;
      const auto row = static_cast<size_t>(next_row[rank]++);
      plan.row_token[row] = static_cast<int32_t>(token);
      plan.row_slots[row] = static_cast<int32_t>(at);
    }
  }
  plan.token_slots.push_back(static_cast<int32_t>(plan.token_slot.size()));
}

// Rows by token, each token's in rank order: a counting sort of the rows by token keeps the rank order.
void index_tokens(DispatchPlan& plan) {
  plan.token_rows.assign(static_cast<size_t>(plan.num_tokens) + 1, 0);
  for (const int32_t token : plan.row_token) ++plan.token_rows[token + 1];
  std::partial_sum(plan.token_rows.begin(), plan.token_rows.end(), plan.token_rows.begin());
  std::vector<int32_t> next(plan.token_rows.begin(), plan.token_rows.end() - 1);
  plan.token_row.resize(plan.row_token.size());
  for (size_t row = 0; row < plan.row_token.size(); ++row) {
    plan.token_row[static_cast<size_t>(next[static_cast<size_t>(plan.row_token[row])]++)] = static_cast<int32_t>(row);
  }
}

}  // namespace

std::vector<int64_t> offsets_of(std::span<const int64_t> counts) {
  std::vector<int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

DispatchPlan make_dispatch_plan(std::span<const int32_t> expert_ids, int top_k, const ExpertMap& map) {
  check_experts(expert_ids, top_k, map);
  DispatchPlan plan;
  plan.top_k = top_k;
  plan.num_tokens = static_cast<int64_t>(expert_ids.size()) / top_k;
  count(expert_ids, map, plan);
  place(expert_ids, map, plan);
  index_tokens(plan);
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
    CADRE_CHECK(expert >= 0 && expert < num_local_experts,
                fmt::format("received a row for local expert {}, this rank has {}", expert, num_local_experts));
    ++batch.expert_offsets[expert + 1];
  }
  std::partial_sum(batch.expert_offsets.begin(), batch.expert_offsets.end(), batch.expert_offsets.begin());

  std::vector<int32_t> next(batch.expert_offsets.begin(), batch.expert_offsets.end() - 1);
  const size_t num_slots = slot_expert.size();
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
  CADRE_CHECK(slot == num_slots, fmt::format("rows announce {} slots and {} came", slot, num_slots));
  return batch;
}

}  // namespace cadre
