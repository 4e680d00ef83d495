// SPDX-License-Identifier: Apache-2.0
// What a strategy implements: a Route carries the rows and slots of one plan, each (direction, unit) by a RowTransfer.
// Code outside of comm/exchange calls Dispatch (dispatch.hpp) instead.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "comm/exchange/plan.hpp"
#include "comm/job/request.hpp"
#include "comm/wire/format.hpp"

namespace cadre {

// to_experts: from the token's rank to the ranks of its experts. to_tokens: back.
enum class Direction : uint8_t { to_experts, to_tokens };
// One element per row of the plan (token, rank), or per slot (token, k).
enum class Unit : uint8_t { row, slot };

// How much arrives from each rank, by rank; offsets have one entry more.
struct ReceiveCounts {
  std::vector<int64_t> row_counts, row_offsets;
  std::vector<int64_t> slot_counts, slot_offsets;

  int64_t num_rows() const { return row_offsets.back(); }
  int64_t num_slots() const { return slot_offsets.back(); }
};

// Elements for, or from, each rank of the group.
struct Side {
  const std::vector<int64_t>& counts;
  const std::vector<int64_t>& offsets;

  int64_t total() const { return offsets.back(); }
};

// What leaves this rank and what arrives.
struct Sides {
  Side out;
  Side in;
};

// The elements of each token among those of the plan: token t has index[offsets[t]] .. index[offsets[t+1]].
struct TokenOrder {
  std::span<const int32_t> offsets;
  std::span<const int32_t> index;
};
inline TokenOrder token_order(const DispatchPlan& plan, Unit unit) {
  return unit == Unit::row ? TokenOrder{plan.token_rows, plan.token_row}
                           : TokenOrder{plan.token_slots, plan.token_slot};
}

// One direction of one unit. The calls in order:
//
//   transfer->pack(elements);
//   co_await transfer->packed();   // complete at once where the host packs
//   transfer->start();
//   co_await transfer->finish();   // other work may run before this
//   ... = transfer->unpack();
//   co_await transfer->release();  // only where the sender writes over its elements
//
// A transfer owns its buffers and returns them to the pool of its exchange when it is destroyed.
class RowTransfer {
 public:
  virtual ~RowTransfer() = default;
  // Elements in the order in which they leave: of the plan (to experts), or of what was received (to tokens). Rows to
  // experts are indexed by the plan's row_token: base + t * stride is the row of token t. Elements must not change until
  // the finish and, where peers read them in place, until all peers have: to experts until the results are back, to tokens
  // until release() is complete.
  virtual void pack(const Elements& elements) = 0;
  // Complete when start() may be called.
  Request& packed() { return packed_; }
  virtual void start() = 0;
  Request& finish() { return finished_; }
  // After the finish; valid until release() or the end of this transfer. To experts: by (source rank, token), slots also
  // by k. To tokens: by token, with offsets.
  virtual Elements unpack() = 0;
  // This rank has read what arrived. Complete when all peers have read what they got from it.
  virtual Request& release() { return released_; }

 protected:
  Request packed_;
  Request finished_;
  Request released_;
};

// The exchange must outlive the route, the route its transfers. Every call is collective over the group of the exchange,
// in the same order on all ranks. Of each (direction, unit) one transfer is under way at a time.
class Route {
 public:
  explicit Route(DispatchPlan plan) : plan_(std::move(plan)) {}
  virtual ~Route() = default;

  const DispatchPlan& plan() const { return plan_; }
  const ReceiveCounts& receive() const { return receive_; }  // after learn_counts()

  // Tells each rank how many rows and slots it receives. When the request is complete, learn_counts() reads the answers;
  // it throws ErrorKind::peer on counts that cannot be.
  virtual Request& announce() = 0;
  virtual void learn_counts() = 0;

  // Rows go to the experts before sums of them come to the tokens.
  virtual std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) = 0;

  Sides sides(Direction direction, Unit unit) const {
    const Side planned =
        unit == Unit::row ? Side{plan_.row_counts, plan_.row_offsets} : Side{plan_.slot_counts, plan_.slot_offsets};
    const Side received = unit == Unit::row ? Side{receive_.row_counts, receive_.row_offsets}
                                            : Side{receive_.slot_counts, receive_.slot_offsets};
    return direction == Direction::to_experts ? Sides{planned, received} : Sides{received, planned};
  }

 protected:
  DispatchPlan plan_;
  ReceiveCounts receive_;
};

}  // namespace cadre
