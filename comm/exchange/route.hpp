// SPDX-License-Identifier: Apache-2.0
// A plan and what the others plan for this rank: everything that the ways there and back are made of.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/exchange/plan.hpp"

namespace cadre {

// to_experts: from the token's rank to the ranks of its experts (dispatch; in backward, of output gradients).
// to_tokens: back (combine; in backward, of input gradients).
enum class Direction : uint8_t { to_experts, to_tokens };
// One element per row of the plan (token, rank), or per slot (token, k).
enum class Unit : uint8_t { row, slot };

// What comes from each rank, learned from the others.
struct ReceiveCounts {
  std::vector<int64_t> row_counts, row_offsets;
  std::vector<int64_t> slot_counts, slot_offsets;
  std::vector<int64_t> extra;  // what else the strategy of the exchange tells each peer
  std::shared_ptr<std::vector<int64_t>>
      announced;  // between announce() and learn_counts(): rows, slots, extra of each peer

  int64_t num_rows() const { return row_offsets.back(); }
  int64_t num_slots() const { return slot_offsets.back(); }
};

struct HostRoute;

struct Route {
  DispatchPlan plan;
  ReceiveCounts receive;
  std::shared_ptr<HostRoute> between_hosts;  // of the hierarchical strategy, which fills it
};

// Elements for, or from, each rank of the group.
struct Side {
  const std::vector<int64_t>& counts;
  const std::vector<int64_t>& offsets;

  int64_t total() const { return offsets.back(); }
};

Side planned_side(const DispatchPlan& plan, Unit unit);
Side received_side(const ReceiveCounts& receive, Unit unit);

// What leaves this rank and what comes to it.
struct Sides {
  Side out;
  Side in;
};
Sides sides_of(const Route& route, Direction direction, Unit unit);

// The elements of each token among those of the plan: token t has index[offsets[t]] .. index[offsets[t+1]).
struct TokenOrder {
  std::span<const int32_t> offsets;
  std::span<const int32_t> index;
};
TokenOrder token_order(const DispatchPlan& plan, Unit unit);

}  // namespace cadre
