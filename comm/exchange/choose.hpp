// SPDX-License-Identifier: Apache-2.0
// Picks a strategy: measures what moving bytes costs on this machine, predicts what each strategy takes for balanced
// routing, and says why.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/exchange/exchange.hpp"

namespace cadre {

// Latency and time per byte (the alpha-beta model of Hockney 1994), with all ranks sending at once, as in an exchange.
struct LinkCost {
  double alpha_s = 0.0;  // of one message
  double beta_s = 0.0;   // of one byte
  double burst_s = 0.0;  // of sending that an idle link saves up and then sends at once, as token buckets of clouds do
  double contention = 0.0;  // work of the ranks takes 1 + this times as long while they send

  // Of a link that was busy before.
  double time(double messages, double bytes) const { return messages * alpha_s + bytes * beta_s; }
  bool operator==(const LinkCost&) const = default;
};

struct CostModel {
  LinkCost host;        // messages between ranks of a host
  LinkCost network;     // between hosts; zero where there is one
  double copy_s = 0.0;  // of one byte copied in memory
};

// Whether bursts are measured too, which takes a pause.
enum class Bursts { ignored, measured };

// Collective; `topology` is of the group's ranks. The slowest rank counts, so all ranks get the same numbers.
CostModel measure_costs(const Communicator& group, const Topology& topology, Bursts bursts = Bursts::ignored);

// One dispatch and combine, as the model will ask for.
struct ExchangeWorkload {
  int64_t tokens = 0;  // of each rank
  int top_k = 0;
  RowFormat dispatch;
  RowFormat combine;
  bool slot_order = false;  // a row comes back for each slot
  int experts = 0;          // that a token draws its own from; 0: very many
  int most_hosts = 0;       // that the experts of a token are on; 0: no limit
};

// Of a rank with balanced routing: how long a dispatch or a combine occupies its links, and what it takes beside that.
struct LinkTime {
  double busy_s = 0.0;
  double latency_s = 0.0;

  double seconds() const { return busy_s + latency_s; }
};
struct ExchangeTimes {
  LinkTime dispatch;
  LinkTime combine;
  double copied_s = 0.0;    // passes over rows in memory, by this rank
  double row_copies = 0.0;  // ranks that need a token
};
// Pure. A strategy without a formula here is expected to take as long as flat.
ExchangeTimes exchange_times(const std::string& strategy, const ExchangeWorkload& workload, const Topology& topology,
                             const CostModel& costs);

struct Prediction {
  std::string strategy;
  double seconds = 0.0;
};

// Of the strategies with a formula, fastest first; those that cannot run between these hosts are left out. Predictions within a quarter of each other are
// as good as equal: then the order is shared, hierarchical, flat, all_gather, so that noise does not decide. Pure.
std::vector<Prediction> predict(const ExchangeWorkload& workload, const Topology& topology, const CostModel& costs);

struct Choice {
  std::unique_ptr<Exchange> exchange;
  std::string reason;  // one line
};

// Makes the fastest that can be made. Collective; the same choice on all ranks.
Choice choose_exchange(const ExchangeSetup& setup, const ExchangeWorkload& workload);

}  // namespace cadre
