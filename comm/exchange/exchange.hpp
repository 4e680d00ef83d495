// SPDX-License-Identifier: Apache-2.0
// Moves token rows to the ranks of their experts and results back. One strategy a file behind the same verbs:
//
//   transfer->pack(rows);            // element i of the plan is rows.base + rows.index[i] * rows.stride
//   co_await transfer->packed();     // complete at once where the host packs
//   transfer->start();
//   co_await transfer->finish();     // or wait(transfer->finish()); other work runs before this
//   ... = transfer->unpack();        // what came
//
// The blocking exchange is all of it in a row. A transfer owns its buffers and hands them back to its exchange when it
// ends.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/exchange/route.hpp"
#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "comm/wire/row_codec.hpp"

namespace cadre {

class RowTransfer {
 public:
  virtual ~RowTransfer() = default;
  // Elements in the order of what leaves this rank: of the plan to the experts, of what was received to the tokens.
  // Rows to the experts are those of the tokens, told by the plan's row_token: base + t * stride is the row of token t.
  // They must stay as they are until the finish and, where the exchange reads in place, until all peers have read them:
  // for dispatch when the results are back, for what goes to the tokens when release() is complete.
  virtual void pack(const Elements& rows) = 0;
  // Complete when the transport may be told to send.
  Request& packed() { return packed_; }
  // Only after that.
  virtual void start() = 0;
  Request& finish() { return finished_; }
  // Only after the finish; valid until release() or the end of this transfer. To the experts: by (source rank, token),
  // slots also by k. To the tokens: by token, with offsets.
  virtual Elements unpack() = 0;
  // This rank has read what came. Complete once all peers have read what they got from it.
  virtual Request& release() { return released_; }

 protected:
  Request packed_;
  Request finished_;
  Request released_;
};

// Bytes that left this rank since the exchange was made; what stays on the rank does not count.
struct Traffic {
  int64_t between_ranks = 0;  // all of it
  int64_t between_hosts = 0;  // what left the host

  Traffic operator-(const Traffic& other) const {
    return {between_ranks - other.between_ranks, between_hosts - other.between_hosts};
  }
};

// One per lane. Every call is collective over the lane's expert-parallel group, in the same order on all its ranks. Of
// each (direction, unit) one transfer is under way at a time.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual std::string_view name() const = 0;

  // Tells every rank how many rows and slots of route.plan come to it. route.receive is filled by learn_counts once the
  // returned request is complete.
  virtual Request announce(Route& route) = 0;
  virtual void learn_counts(Route& route) = 0;

  // The route must outlive the transfer. Rows go to the experts before sums of them come to the tokens.
  virtual std::unique_ptr<RowTransfer> transfer(const Route& route, Direction direction, Unit unit,
                                                const RowFormat& format) = 0;

  // Memory of this rank that its peers can read. Rows that lie in it are not copied to be sent; so the activations
  // belong here. Empty where the strategy sends messages.
  virtual std::span<std::byte> memory() { return {}; }
  // Rows of numbers are packed by a device in the order of what it is told: they need not be there when pack() is called.
  virtual bool packs_later() const { return false; }
  // Sending results slot by slot moves less than making sums for each rank first, because rows are read where they are.
  virtual bool prefers_slots() const { return false; }

  virtual Traffic traffic() const { return {}; }
};

// What an exchange is made for. `group` must outlive the exchange, and `topology` is of its ranks.
struct ExchangeSetup {
  const Communicator& group;
  Topology topology;
  int64_t max_tokens = 0;    // of one plan, on any rank of the group
  int top_k = 0;             // of one plan
  size_t max_row_bytes = 0;  // as computed
  size_t memory_bytes = 0;   // wanted of Exchange::memory()
  // Of a device, where activations lie on one; the exchange must not outlive it.
  const RowCodec* device_codec = nullptr;
  bool transport_follows = false;  // that device (Transport::follow)
};

// Packs, sends one message to each rank, needs nothing of the network but point-to-point.
std::unique_ptr<Exchange> make_flat_exchange(const ExchangeSetup& setup);
// Every rank gets all rows and picks its own; results come back as in the flat exchange. For few rows, or large top-k.
std::unique_ptr<Exchange> make_all_gather_exchange(const ExchangeSetup& setup);
// Ranks of one host read each other's rows where they are. Collective; throws ErrorKind::environment on all ranks when
// the group spans hosts or the host has not the memory.
std::unique_ptr<Exchange> make_shared_exchange(const ExchangeSetup& setup);

// A row crosses between two hosts once, however many ranks there need it, and is read in shared memory inside; sums for
// a host come back as one row. Collective; throws as the shared one does.
std::unique_ptr<Exchange> make_hierarchical_exchange(const ExchangeSetup& setup);

inline constexpr std::string_view kStrategies[] = {"flat", "all_gather", "shared", "hierarchical"};
std::unique_ptr<Exchange> make_exchange(std::string_view strategy, const ExchangeSetup& setup);

// Sends nothing, for dry runs: assumes that every rank sends this one half more than this one sends itself (the busiest
// rank of an uneven routing), and hands out transfers without memory. `bytes` follows what the shared exchange would
// hold (in_place), or the flat one.
struct ExchangeBytes {
  size_t now = 0;
  size_t peak = 0;
};
std::unique_ptr<Exchange> make_dry_exchange(int rank, bool in_place, ExchangeBytes& bytes);

}  // namespace cadre
