// SPDX-License-Identifier: Apache-2.0
// Picks a strategy: predicts from the measured costs what each takes for balanced routing, and says why.
#pragma once

#include <string>
#include <vector>

#include "comm/exchange/cost_model.hpp"
#include "comm/exchange/exchange.hpp"

namespace cadre {

// One dispatch and combine, as the model will ask for.
struct ExchangeWorkload {
  int64_t tokens = 0;  // of each rank
  int top_k = 0;
  RowFormat dispatch;
  RowFormat combine;
  bool slot_order = false;  // a row comes back for each slot
};

struct Prediction {
  std::string strategy;
  double seconds = 0.0;
};

// Fastest first; those that cannot run between these hosts are left out. Predictions within a quarter of each other are
// as good as equal: then the order is shared, hierarchical, flat, all_gather, so that noise does not decide. Pure.
std::vector<Prediction> predict(const ExchangeWorkload& workload, const Topology& topology, const CostModel& costs);

struct Choice {
  std::unique_ptr<Exchange> exchange;
  std::string reason;  // one line
};

// Makes the fastest that can be made. Collective; the same choice on all ranks.
Choice choose_exchange(const ExchangeSetup& setup, const ExchangeWorkload& workload);

}  // namespace cadre
