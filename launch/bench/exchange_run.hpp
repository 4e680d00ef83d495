// SPDX-License-Identifier: Apache-2.0
// One rank of one strategy under one workload of `cadre bench exchange`. Timed is all that an exchange does for a mixture
// layer whose experts do nothing: rows into expert order, and weighted sums home to each token. Plans and counts are made
// before, for all contenders alike.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "launch/bench/workloads.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/tensor/arena.hpp"

namespace cadre {

struct ExchangeBenchOptions {
  int64_t tokens = 4096;  // of each rank
  int64_t hidden = 2048;
  int64_t experts = 16;
  int64_t top_k = 8;
  std::string strategy = "all";
  std::string wire = "fp32";    // of dispatch; combine is bf16 where that is not fp32
  std::string workload = "W0";  // W0 ... W7 or all
  std::string combine = "partial";
  std::string device = "cpu";  // that gathers and adds up rows
  int64_t hosts = 0;           // 0: as they are; else the ranks play that many
  int64_t iterations = 20;
  int64_t warmup = 3;
  int64_t ranks = 0;
  std::string json;
};

class ExchangeRun {
 public:
  // Collective over `world`, which must outlive it.
  ExchangeRun(const Communicator& world, const Topology& topology, const ExchangeBenchOptions& options,
              const std::string& strategy);

  // Routing, plan, counts and expert order of one iteration; rows are written anew and outputs poisoned. Collective.
  void prepare(Workload workload, int64_t iteration);

  // Each collective, from a common start, in microseconds of this rank.
  double exchange_us();
  double alltoallv_us();
  double memcpy_us();  // of as many bytes as rows come here, there and back
  double timed_us(const std::function<void()>& work) const;

  // Rows on their way to experts, and, once they have arrived, in expert order. Collective, the two in turn.
  std::unique_ptr<RowTransfer> start_dispatch();
  void finish_dispatch(RowTransfer& rows);

  // Rows in expert order, and results of this rank's tokens, that are not what they must be.
  int64_t wrong_placed() const;
  int64_t wrong_results() const;

  const Route& route() const { return route_; }
  Traffic traffic() const { return exchange_->traffic(); }
  int64_t alltoallv_bytes() const { return alltoallv_bytes_; }  // that left this rank

 private:
  void combine();
  void learn_batch();

  const Communicator& world_;
  ExchangeBenchOptions options_;
  ExpertMap map_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<DeviceClock> clock_;
  std::unique_ptr<Exchange> exchange_;
  Arena arena_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  RowFormat dispatch_format_, combine_format_;
  bool by_slot_ = false;
  std::vector<int32_t> ids_;
  Route route_;
  ExpertBatch batch_;
  Tensor x_, placed_, y_;  // [T,H], [S,H], [T,H]
  std::vector<float> token_weights_, slot_weights_;
  int64_t alltoallv_bytes_ = 0;
  Buffer from_, into_;
};

}  // namespace cadre
