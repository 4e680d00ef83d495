// SPDX-License-Identifier: Apache-2.0
// Dispatch and combine as they are written by hand: one row per (token, expert), packed, MPI_Alltoallv, unpacked. The
// yardstick of `cadre bench exchange`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/expert_map.hpp"
#include "comm/group/communicator.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre {

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
