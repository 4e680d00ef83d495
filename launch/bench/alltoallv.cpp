// SPDX-License-Identifier: Apache-2.0
#include "launch/bench/alltoallv.hpp"

#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "comm/base/check.hpp"
#include "layers/moe/elements.hpp"

namespace cadre {
namespace {

Tensor rows_in(Buffer& buffer, int64_t count, int64_t hidden) { return {buffer.data(), DType::f32, {count, hidden}}; }

// into[i] = from[index[i]], as one writes it.
void copy_rows(const Tensor& from, const std::vector<int32_t>& index, const Tensor& into) {
  const size_t row_bytes = into.row_bytes();
  for (size_t i = 0; i < index.size(); ++i) {
    std::memcpy(into.raw() + i * row_bytes, from.raw() + static_cast<size_t>(index[i]) * row_bytes, row_bytes);
  }
}

std::vector<int> starts(const std::vector<int>& counts) {
  std::vector<int> offsets(counts.size(), 0);
  std::partial_sum(counts.begin(), counts.end() - 1, offsets.begin() + 1);
  return offsets;
}

}  // namespace

AlltoallvExchange::AlltoallvExchange(const Communicator& world, const Kernels& kernels, std::span<const int32_t> ids,
                                     int top_k, const ExpertMap& map, int64_t hidden)
    : world_(world), kernels_(kernels), hidden_(hidden) {
  const auto num_ranks = static_cast<size_t>(world.size());
  send_counts_.assign(num_ranks, 0);
  for (const int32_t id : ids) ++send_counts_[static_cast<size_t>(map.owner(id))];
  send_offsets_ = starts(send_counts_);
  receive_counts_ = wait(world.all_to_all(send_counts_));
  receive_offsets_ = starts(receive_counts_);

  std::vector<int> next = send_offsets_;
  std::vector<int32_t> expert(ids.size());
  pack_token_.resize(ids.size());
  slot_row_.resize(ids.size());
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    const int row = next[static_cast<size_t>(map.owner(ids[slot]))]++;
    pack_token_[row] = static_cast<int32_t>(slot / static_cast<size_t>(top_k));
    slot_row_[slot] = row;
    expert[row] = map.local_index(ids[slot]);
  }
  for (size_t slot = 0; slot <= ids.size(); slot += static_cast<size_t>(top_k)) {
    token_offsets_.push_back(static_cast<int32_t>(slot));
  }

  const int num_received = receive_offsets_.back() + receive_counts_.back();
  std::vector<int32_t> expert_received(static_cast<size_t>(num_received));
  const std::vector<int64_t> send64(send_counts_.begin(), send_counts_.end());
  const std::vector<int64_t> receive64(receive_counts_.begin(), receive_counts_.end());
  const std::vector<int64_t> send_at(send_offsets_.begin(), send_offsets_.end());
  const std::vector<int64_t> receive_at(receive_offsets_.begin(), receive_offsets_.end());
  Request experts = world.transport().all_to_all_rows(
      {reinterpret_cast<const std::byte*>(expert.data()), send64, send_at},
      {reinterpret_cast<std::byte*>(expert_received.data()), receive64, receive_at}, sizeof(int32_t));
  wait(experts);
  expert_order_.resize(expert_received.size());
  std::iota(expert_order_.begin(), expert_order_.end(), 0);
  std::stable_sort(expert_order_.begin(), expert_order_.end(),
                   [&](int32_t a, int32_t b) { return expert_received[a] < expert_received[b]; });
  arrival_order_.resize(expert_order_.size());
  for (size_t place = 0; place < expert_order_.size(); ++place) {
    arrival_order_[expert_order_[place]] = static_cast<int32_t>(place);
  }
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  sent_ = Buffer(ids.size() * row_bytes);
  received_ = Buffer(expert_received.size() * row_bytes);
  placed_ = Buffer(expert_received.size() * row_bytes);
}

void AlltoallvExchange::run(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const Tensor sent = rows_in(sent_, static_cast<int64_t>(pack_token_.size()), hidden_);
  const Tensor received = rows_in(received_, static_cast<int64_t>(expert_order_.size()), hidden_);
  const Tensor placed = rows_in(placed_, received.dim(0), hidden_);
  copy_rows(x, pack_token_, sent);
  exchange(sent, send_counts_, send_offsets_, received, receive_counts_, receive_offsets_);
  copy_rows(received, expert_order_, placed);

  copy_rows(placed, arrival_order_, received);
  exchange(received, receive_counts_, receive_offsets_, sent, send_counts_, send_offsets_);
  kernels_.sum_rows(sent, index_tensor(token_offsets_), index_tensor(slot_row_), weight, y);
}

int64_t AlltoallvExchange::crossing_bytes() const {
  const auto me = static_cast<size_t>(world_.rank());
  const int64_t rows =
      static_cast<int64_t>(pack_token_.size() + expert_order_.size()) - send_counts_[me] - receive_counts_[me];
  return rows * hidden_ * static_cast<int64_t>(sizeof(float));
}

void AlltoallvExchange::exchange(const Tensor& from, const std::vector<int>& send_counts,
                                 const std::vector<int>& send_offsets, const Tensor& into,
                                 const std::vector<int>& receive_counts, const std::vector<int>& receive_offsets) {
  if (world_.transport().name() != "mpi") {  // ranks that are threads have no MPI
    const std::vector<int64_t> sends(send_counts.begin(), send_counts.end());
    const std::vector<int64_t> receives(receive_counts.begin(), receive_counts.end());
    const std::vector<int64_t> send_at(send_offsets.begin(), send_offsets.end());
    const std::vector<int64_t> receive_at(receive_offsets.begin(), receive_offsets.end());
    Request moved = world_.transport().all_to_all_rows({from.raw(), sends, send_at}, {into.raw(), receives, receive_at},
                                                       into.row_bytes());
    return wait(moved);
  }
  MPI_Datatype row = MPI_DATATYPE_NULL;
  const auto check = [](int code) { CADRE_CHECK(code == MPI_SUCCESS, "MPI_Alltoallv of the yardstick failed"); };
  check(MPI_Type_contiguous(checked_int(hidden_, "floats of a row"), MPI_FLOAT, &row));
  check(MPI_Type_commit(&row));
  check(MPI_Alltoallv(from.raw(), send_counts.data(), send_offsets.data(), row, into.raw(), receive_counts.data(),
                      receive_offsets.data(), row, MPI_COMM_WORLD));
  check(MPI_Type_free(&row));
}

}  // namespace cadre
