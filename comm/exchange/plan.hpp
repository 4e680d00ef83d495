// SPDX-License-Identifier: Apache-2.0
// Who sends which token row to whom: pure values, made without communication, printable and comparable.
//
// A slot is one (token, k) of the router's choice. A row is one token on its way to one rank: it travels once however
// many of its experts live there, and carries those slots. Example: 2 tokens, top-2, experts 0 1 on rank 0, 2 3 on rank
// 1
//
//   token 0 -> experts 1, 0     row 0: token 0 -> rank 0, slots (0,0) (0,1)
//   token 1 -> experts 3, 0     row 1: token 1 -> rank 0, slot  (1,1)
//                               row 2: token 1 -> rank 1, slot  (1,0)
//   row_counts = {2, 1}   slot_counts = {3, 1}
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/exchange/expert_map.hpp"

namespace cadre {

// The rows that this rank sends, ordered by (destination rank, token); what it gets back is in the same order.
struct DispatchPlan {
  int64_t num_tokens = 0;
  int top_k = 0;
  int64_t num_dropped = 0;  // slots with expert -1

  // By destination rank: how many rows and slots, and where they start. Offsets have one entry more.
  std::vector<int64_t> row_counts, row_offsets;
  std::vector<int64_t> slot_counts, slot_offsets;

  std::vector<int32_t> row_token;    // [rows]      the token of each row
  std::vector<int32_t> row_slots;    // [rows + 1]  row r carries slots[row_slots[r] .. row_slots[r+1])
  std::vector<int32_t> slots;        // [slots]     token * top_k + k, by row, then k
  std::vector<int32_t> slot_expert;  // [slots]     index of the expert on its rank

  // The way back. Token t gets rows token_row[token_rows[t] .. token_rows[t+1]), by rank, and its slots are
  // token_slot[token_slots[t] .. token_slots[t+1]), by k; both are indices into what comes back.
  std::vector<int32_t> token_rows, token_row;
  std::vector<int32_t> token_slots, token_slot;

  int64_t num_rows() const { return static_cast<int64_t>(row_token.size()); }
  int64_t num_slots() const { return static_cast<int64_t>(slots.size()); }
  int num_ranks() const { return static_cast<int>(row_counts.size()); }

  std::string describe() const;  // counts by rank, for people
  bool operator==(const DispatchPlan&) const = default;
};

// `expert_ids` is [tokens, top_k]; -1 masks a slot. Throws on an id outside of the map. `source_rank`, that of the tokens
// in the group, matters only where experts have replicas.
DispatchPlan make_dispatch_plan(std::span<const int32_t> expert_ids, int top_k, const ExpertMap& map,
                                int source_rank = 0);

// The same where the replica that works on each slot is known; -1 masks a slot.
DispatchPlan make_replica_plan(std::span<const int32_t> replicas, int top_k, const ExpertMap& map);

// Throws ErrorKind::input: the id is outside of [-1, num_experts).
[[noreturn]] void refuse_expert(int64_t token, int32_t expert, int num_experts);

// The replica that works on each slot: the i-th slot of an expert with n replicas, in the order of the plan, goes to
// replica (source rank + i) mod n. So each source shares its slots out evenly to within one, and the odd ones of
// neighbouring sources go to different replicas. -1 stays.
std::vector<int32_t> choose_replicas(std::span<const int32_t> expert_ids, int top_k, const ExpertMap& map,
                                     int source_rank);

// The received slots in expert order: by (expert, source rank, token), which is the order of the grouped product.
struct ExpertBatch {
  std::vector<int32_t> expert_offsets;  // [local experts + 1]  expert e works on places offsets[e] .. offsets[e+1]
  std::vector<int32_t> place_row;       // [slots]              received row at each place
  std::vector<int32_t> row_places;      // [rows + 1]           row r is worked on at ...
  std::vector<int32_t> row_place;       // [slots]              ... these places, by k
  std::vector<int32_t> place_slot;      // [slots]              received slot (row order, then k) at each place
  std::vector<int32_t> slot_row;        // [slots]              received row of each received slot
};

// `row_slot_counts[r]` slots of row r, `slot_expert[s]` local expert of each, in the order they arrived.
ExpertBatch make_expert_batch(std::span<const int32_t> row_slot_counts, std::span<const int32_t> slot_expert,
                              int num_local_experts);

// offsets[i] = counts[0] + .. + counts[i-1], one entry more than counts.
std::vector<int64_t> offsets_of(std::span<const int64_t> counts);

}  // namespace cadre
