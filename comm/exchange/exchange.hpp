// SPDX-License-Identifier: Apache-2.0
// Moves token rows to the ranks of their experts and results back. One strategy a file behind the same four verbs:
//
//   transfer->pack(rows, index);     // message row i is rows[index[i]]
//   transfer->start();
//   co_await transfer->finish();     // or wait(transfer->finish()); other work runs before this
//   ... = transfer->unpack();        // what came, by (source rank, row)
//
// The blocking exchange is the four in a row. A transfer owns its buffers and hands them back to its exchange when it
// ends.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/plan.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// to_experts: from the token's rank to the ranks of its experts (dispatch; in backward, of output gradients).
// to_tokens: back (combine; in backward, of input gradients).
enum class Direction { to_experts, to_tokens };
// One element per row of the plan (token, rank), or per slot (token, k).
enum class Unit { row, slot };

// A plan and what the others plan for this rank.
struct Route {
  DispatchPlan plan;
  ReceiveCounts receive;
};

class RowTransfer {
 public:
  virtual ~RowTransfer() = default;
  // `rows` are elements of row_bytes; an empty index means 0, 1, 2, ... and the rows may be read until the finish.
  virtual void pack(const std::byte* rows, std::span<const int32_t> index) = 0;
  virtual void start() = 0;
  Request& finish() { return request_; }
  // Valid as long as this transfer. Only after the finish.
  virtual std::span<const std::byte> unpack() = 0;

 protected:
  Request request_;
};

// Buffers that are used again, so that a step touches no fresh pages.
class BufferPool {
 public:
  Buffer take(size_t bytes);
  void give_back(Buffer buffer);

 private:
  std::vector<Buffer> free_;
};

// One per lane. Every call is collective over the lane's expert-parallel group, in the same order on all its ranks.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual std::string_view name() const = 0;

  // Tells every rank how many rows and slots of route.plan come to it. route.receive is filled by learn_counts once the
  // returned request is complete.
  virtual Request announce(Route& route) = 0;
  virtual void learn_counts(Route& route) = 0;

  // An element is `element_bytes` long. The route must outlive the transfer.
  virtual std::unique_ptr<RowTransfer> transfer(const Route& route, Direction direction, Unit unit,
                                                size_t element_bytes) = 0;
};

// Packs, sends one message to each rank, needs nothing of the network but point-to-point. `group` must outlive it.
std::unique_ptr<Exchange> make_flat_exchange(const Communicator& group);

// Sends nothing, for dry runs: assumes that every rank sends this one half more than this one sends itself (the busiest
// rank of an uneven routing), and hands out transfers without memory. `bytes` follows what the flat exchange would hold.
struct ExchangeBytes {
  size_t now = 0;
  size_t peak = 0;
};
std::unique_ptr<Exchange> make_dry_exchange(int rank, ExchangeBytes& bytes);

}  // namespace cadre
