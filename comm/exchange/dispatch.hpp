// SPDX-License-Identifier: Apache-2.0
// The tokens of one micro-batch on their way to the experts of one layer and back, forward and backward. Each rank of the
// group makes a Dispatch of its own tokens; y_t = sum_k w_tk E_k(x_t) is then
//
//   Dispatch dispatch(exchange, ids, top_k, map, weights);
//   ExpertRows rows = co_await dispatch.to_experts(x, format);            // row p is that of the token at place p
//   ... out[p] = E(rows[p]) for every expert of this rank
//   co_await dispatch.to_tokens(out, format, Weighted::yes, mode, sums);  // sums adds up y
//
// and the backward pass, from dy to dx and dw
//
//   ExpertRows dy_rows = co_await dispatch.to_experts(dy, format);
//   ... d_out[p] = rows.weights[p] dy_rows[p],   dw[p] = <dy_rows[p], out[p]>,   d_in[p] = the input gradient of E
//   co_await dispatch.numbers_to_tokens(dw, ...);
//   co_await dispatch.to_tokens(d_in, format, Weighted::no, mode, sums);  // sums adds up dx
//
// Expert order. A place is one (token, k) at its expert; the places of a rank are ordered by (expert, source rank, token).
// Example: experts 0 1 on rank 0 and 2 3 on rank 1, top-2
//
//   rank 0: token 0 -> experts 1 0      places of rank 0: expert 0: (rank 0, token 0)  expert 1: (0, 0) (1, 0)
//   rank 1: token 0 -> experts 1 3      places of rank 1: expert 3: (1, 0)
//   expert_offsets {0, 1, 3} on rank 0, {0, 0, 1} on rank 1
//
// All calls are collective over the group of the exchange, in the same order on all its ranks. How rows travel is the
// strategy of the exchange; results do not depend on it, except that `partial` adds up in another order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "comm/exchange/route.hpp"
#include "comm/progress/task.hpp"

namespace cadre {

// How results return. partial: one weighted sum per (token, rank), the fewest bytes. slot_order: one row per (token, k),
// added in the order of k on the token's rank, so the bits do not depend on where experts are. A strategy that reads rows
// in place always does the latter, because that moves less than making sums first.
enum class CombineMode : uint8_t { partial, slot_order };

enum class Weighted : bool { no, yes };

// Rows at the experts, in expert order. Where the strategy shares memory, the sender keeps the rows until this object is
// destroyed on all ranks.
class ExpertRows {
 public:
  ExpertRows(std::unique_ptr<RowTransfer> transfer, const Elements& arrived, std::span<const int32_t> places);

  // Row p is base + index[p] * stride.
  Elements elements() const { return {rows_.base, rows_.stride, index_}; }

 private:
  std::unique_ptr<RowTransfer> transfer_;
  Elements rows_;
  std::vector<int32_t> index_;  // [places]
};

// Sums of rows: result i is the sum over j in offsets[i] .. offsets[i+1], in that order, of weights[j] * rows[index[j]].
struct RowSums {
  Elements rows;
  std::span<const int32_t> offsets;  // [results + 1]
  std::span<const int32_t> index;
  std::span<const double> weights;  // as long as index; empty: all are 1
};

// Computes the sums of to_tokens() with the back end and in the memory of the caller.
class RowAdder {
 public:
  virtual ~RowAdder() = default;
  // Complete when all rows computed so far are in memory.
  virtual Request computed() = 0;
  // At the experts, with CombineMode::partial: the sums of each row that came, to be sent. They stay until to_tokens ends.
  virtual Elements add_at_experts(const RowSums& sums) = 0;
  // At the tokens: one result per token. The rows stay until the returned request is complete.
  virtual Request add_at_tokens(const RowSums& sums) = 0;
};

class Dispatch {
 public:
  // Makes the plan and sends nothing. `ids` and `weights` are [T, top_k]; id -1: no expert. Throws ErrorKind::input on an id
  // outside of the map. The exchange must outlive the dispatch.
  Dispatch(Exchange& exchange, std::span<const int32_t> ids, int top_k, const ExpertMap& map,
           std::vector<double> weights);
  // The same with a plan that was made for that map and this rank.
  Dispatch(Exchange& exchange, DispatchPlan plan, const ExpertMap& map, std::vector<double> weights);

  // Work that runs while rows travel.
  using Meanwhile = std::function<void()>;

  // Tells each rank which rows come to its experts and with which weights. Without it, the first to_experts() does so, and
  // its rows travel together with that.
  Task<void> announce();

  // Row t of `tokens`, without index, goes to each rank that holds an expert of token t. The rows must not change before the
  // next to_tokens() is complete. Where the host packs, rows are read when `computed()` is complete; none: they are there.
  using Computed = std::function<Request()>;
  Task<ExpertRows> to_experts(Elements tokens, RowFormat format, Computed computed = {}, Meanwhile meanwhile = {});
  // A row of its own for each slot with an expert, [slots] in the order of (token, k), to that expert.
  Task<ExpertRows> slots_to_experts(Elements slots, RowFormat format);

  // Row p of `results`, without index, is that of place p; the sum over its places is each token's result.
  Task<void> to_tokens(Elements results, RowFormat format, Weighted weighted, CombineMode mode, RowAdder& adder);
  // One number of `number_bytes` per place, to `into` [T, top_k] at its token and k; zero bytes where there is no expert.
  // `numbers` must be complete with `computed` and may change when `meanwhile` runs.
  Task<void> numbers_to_tokens(Elements numbers, size_t number_bytes, std::byte* into, Request computed,
                               Meanwhile meanwhile);

  const DispatchPlan& plan() const { return route_->plan(); }
  // After the announcement: rows and slots for this rank, and their order.
  int64_t num_rows_received() const { return route_->receive().num_rows(); }
  int64_t num_places() const { return route_->receive().num_slots(); }
  const std::vector<int32_t>& expert_offsets() const { return batch_.expert_offsets; }  // [local experts + 1]
  std::vector<double> place_weights() const;                                            // [places]

 private:
  struct SlotRecord;

  Task<void> learn_counts();
  // Weights and experts of this rank's slots, on their way.
  std::unique_ptr<RowTransfer> send_records();
  void learn_batch(RowTransfer& records);
  std::vector<double> token_weights() const;

  Exchange& exchange_;
  int num_local_experts_;
  std::vector<double> weights_;  // [T, top_k]
  std::unique_ptr<Route> route_;
  bool announced_ = false;
  ExpertBatch batch_;
  std::vector<double> slot_weights_;  // [slots] in the order of arrival
};

}  // namespace cadre
