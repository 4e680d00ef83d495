// SPDX-License-Identifier: Apache-2.0
// One rank of one strategy under one workload of `cadre bench exchange`. Timed is what a Dispatch does for a mixture layer
// whose experts do nothing: rows into expert order, and weighted sums back to each token. Plans are made and announced
// before, for all contenders alike.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/dispatch.hpp"
#include "comm/progress/lane.hpp"
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

  // Rows to the experts, into expert order; `meanwhile` runs while they travel. Collective.
  void dispatch(const Dispatch::Meanwhile& meanwhile = {});

  // Rows in expert order, and results of this rank's tokens, that are not what they must be.
  int64_t wrong_placed() const;
  int64_t wrong_results() const;

  const Dispatch& dispatched() const { return *dispatch_; }
  Traffic traffic() const { return exchange_->traffic(); }
  int64_t alltoallv_bytes() const { return alltoallv_bytes_; }  // that left this rank

 private:
  Task<void> to_experts(Dispatch::Meanwhile meanwhile);
  Task<void> to_tokens();
  void run(Task<void> task);
  void forget(const Tensor& output) const;  // fills it with NaN

  const Communicator& world_;
  Lane lane_;
  ExchangeBenchOptions options_;
  ExpertMap map_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<DeviceClock> clock_;
  std::unique_ptr<Exchange> exchange_;
  Arena arena_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  RowFormat dispatch_format_, combine_format_;
  std::vector<int32_t> ids_;
  std::unique_ptr<Dispatch> dispatch_;
  Tensor x_, placed_, y_;  // [T,H], [S,H], [T,H]
  int64_t alltoallv_bytes_ = 0;
  Buffer from_, into_;
};

// Dispatch and combine as they are written by hand: one row per (token, expert), packed, MPI_Alltoallv, unpacked. The
// yardstick of `cadre bench exchange`.
class AlltoallvExchange {
 public:
  // Collective: learns the counts. ids [tokens, top_k].
  AlltoallvExchange(const Communicator& world, const Kernels& kernels, std::span<const int32_t> ids, int top_k,
                    const ExpertMap& map, int64_t hidden);

  // x [T,H] to the experts (which do nothing) and back, y = sum over k of weight x; weight [T,K]. Collective.
  void run(const Tensor& x, const Tensor& weight, const Tensor& y);

  int64_t crossing_bytes() const;  // of this rank, both ways

 private:
  void exchange(const Tensor& from, const std::vector<int>& send_counts, const std::vector<int>& send_offsets,
                const Tensor& into, const std::vector<int>& receive_counts, const std::vector<int>& receive_offsets);

  const Communicator& world_;
  const Kernels& kernels_;
  int64_t hidden_;
  std::vector<int> send_counts_, send_offsets_, receive_counts_, receive_offsets_;  // in rows
  std::vector<int32_t> pack_token_;                                                 // token of each row sent
  std::vector<int32_t> expert_order_;                                               // received row at each place
  std::vector<int32_t> arrival_order_;                                              // place of each received row
  std::vector<int32_t> token_offsets_, slot_row_;  // rows of each token among those sent
  Buffer sent_, received_, placed_;
};

}  // namespace cadre
