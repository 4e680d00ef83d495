// SPDX-License-Identifier: Apache-2.0
// A strategy for moving token rows to the ranks of their experts and back, made once per lane, and the memory that it
// shares with other ranks. What is sent with it is a Dispatch (dispatch.hpp).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/exchange/plan.hpp"
#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "comm/wire/format.hpp"

namespace cadre {

class Route;

// Bytes that left this rank since the exchange was made; bytes that stay on the rank do not count.
struct Traffic {
  int64_t between_ranks = 0;  // all of them
  int64_t between_hosts = 0;  // those that left the host

  Traffic operator-(const Traffic& other) const {
    return {between_ranks - other.between_ranks, between_hosts - other.between_hosts};
  }
};

class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual std::string_view name() const = 0;
  virtual int rank() const = 0;  // in the expert-parallel group

  // Memory of this rank that its peers can read. Rows in it are sent without a copy, so the activations belong here.
  // Empty where the strategy sends messages.
  virtual std::span<std::byte> memory() { return {}; }
  virtual Traffic traffic() const { return {}; }

  // For Dispatch.
  virtual std::unique_ptr<Route> route(DispatchPlan plan) = 0;
  // A device packs rows in the order of its stream: they need not be computed when pack() is called.
  virtual bool packs_later() const { return false; }
  // One row per slot to the tokens moves less than one sum per (token, rank), because rows are read in place.
  virtual bool prefers_slots() const { return false; }
  virtual bool is_dry() const { return false; }
};

// Buffers of messages on the host and, where rows are computed there, on the device.
struct ExchangePools {
  explicit ExchangePools(const RowCodec* device_codec = nullptr)
      : device(device_codec == nullptr ? host_memory() : device_codec->memory(), Outgrown::kept) {}

  BufferPool host;
  BufferPool device;
};

// `group` must outlive the exchange; `topology` is of its ranks.
struct ExchangeSetup {
  const Communicator& group;
  Topology topology;
  int64_t max_tokens = 0;    // of one plan, on any rank of the group
  int top_k = 0;             // of one plan
  size_t max_row_bytes = 0;  // as computed
  size_t memory_bytes = 0;   // wanted of Exchange::memory()
  // Of a device, where activations lie on one; the exchange must not outlive it.
  const RowCodec* device_codec = nullptr;
  bool transport_follows = false;             // that device (Transport::follow)
  std::string plugin = {};                    // of the strategy plugin: path of the shared object
  std::shared_ptr<ExchangePools> pools = {};  // for exchanges of one thread, which take turns with them; none: its own
};

// The built-in strategies; a line here adds one, which make_NAME_exchange of NAME.cpp makes. flat: one message per pair of
// ranks. shared: ranks of one host read each other's rows in place. hierarchical: a row crosses between two hosts once and is
// read in place inside; sums of a host return as one row. all_gather: every rank gets all rows and picks its own; for few rows or
// a large top-k.
#define CADRE_EXCHANGE_STRATEGIES(STRATEGY) \
  STRATEGY(flat)                            \
  STRATEGY(shared)                          \
  STRATEGY(hierarchical)                    \
  STRATEGY(all_gather)

#define CADRE_NAME(name) #name,
inline constexpr std::string_view kStrategies[] = {CADRE_EXCHANGE_STRATEGIES(CADRE_NAME)};
#undef CADRE_NAME

// Not one of them, because it needs ExchangeSetup::plugin.
inline constexpr std::string_view kPluginStrategy = "plugin";

// The names of kStrategies with others around them.
std::vector<std::string> strategy_names(std::initializer_list<std::string_view> before = {},
                                        std::initializer_list<std::string_view> after = {});

// Collective over the group. All ranks get an exchange of the same strategy, or all throw the same error:
// ErrorKind::environment where a host has too little memory or `shared` would span hosts.
std::unique_ptr<Exchange> make_exchange(std::string_view strategy, const ExchangeSetup& setup);

// Sends nothing, for dry runs: assumes that every rank sends this one half more than this one sends itself (the busiest
// rank of an uneven routing), and makes transfers without memory. `bytes` counts what the shared exchange would hold
// (in_place), or the flat one.
struct ExchangeBytes {
  size_t now = 0;
  size_t peak = 0;
};
std::unique_ptr<Exchange> make_dry_exchange(int rank, bool in_place, ExchangeBytes& bytes);

}  // namespace cadre
