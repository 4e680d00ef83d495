// SPDX-License-Identifier: Apache-2.0
// The flat strategy: rows are packed by destination and each pair of ranks exchanges one message. Rows that stay on
// this rank are copied once, straight to where they are received.
#include <cstring>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/exchange.hpp"

namespace cadre {
namespace {

// Counts and offsets of one side.
struct Side {
  const std::vector<int64_t>& counts;
  const std::vector<int64_t>& offsets;
};

Side plan_side(const Route& route, Unit unit) {
  const DispatchPlan& plan = route.plan;
  return unit == Unit::row ? Side{plan.row_counts, plan.row_offsets} : Side{plan.slot_counts, plan.slot_offsets};
}

Side receive_side(const Route& route, Unit unit) {
  const ReceiveCounts& receive = route.receive;
  return unit == Unit::row ? Side{receive.row_counts, receive.row_offsets}
                           : Side{receive.slot_counts, receive.slot_offsets};
}

void copy_rows(const std::byte* rows, std::span<const int32_t> index, int64_t first, int64_t count, size_t row_bytes,
               std::byte* into) {
  if (index.empty()) {
    if (count > 0)
      std::memcpy(into, rows + static_cast<size_t>(first) * row_bytes, static_cast<size_t>(count) * row_bytes);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto source = static_cast<size_t>(index[static_cast<size_t>(first + i)]);
    std::memcpy(into + static_cast<size_t>(i) * row_bytes, rows + source * row_bytes, row_bytes);
  }
}

class FlatTransfer : public RowTransfer {
 public:
  FlatTransfer(const Communicator& group, BufferPool& pool, Side send, Side receive, size_t row_bytes)
      : group_(group), pool_(pool), send_(send), receive_(receive), row_bytes_(row_bytes) {
    received_ = pool_.take(received_bytes());
  }

  ~FlatTransfer() override {
    if (request_.done()) {
      pool_.give_back(std::move(received_));
      pool_.give_back(std::move(packed_));
    } else {
      request_.own(std::move(received_));
      request_.own(std::move(packed_));
    }
  }

  void pack(const std::byte* rows, std::span<const int32_t> index) override {
    const auto me = static_cast<size_t>(group_.rank());
    copy_rows(rows, index, send_.offsets[me], send_.counts[me], row_bytes_,
              received_.data() + static_cast<size_t>(receive_.offsets[me]) * row_bytes_);
    if (index.empty()) {
      message_ = rows;
      return;
    }
    packed_ = pool_.take(static_cast<size_t>(send_.offsets.back()) * row_bytes_);
    for (size_t peer = 0; peer < send_.counts.size(); ++peer) {
      if (peer == me) continue;
      copy_rows(rows, index, send_.offsets[peer], send_.counts[peer], row_bytes_,
                packed_.data() + static_cast<size_t>(send_.offsets[peer]) * row_bytes_);
    }
    message_ = packed_.data();
  }

  void start() override {
    const auto me = static_cast<size_t>(group_.rank());
    send_counts_ = send_.counts;
    receive_counts_ = receive_.counts;
    send_counts_[me] = 0;  // already in place
    receive_counts_[me] = 0;
    request_ = group_.transport().all_to_all_rows({message_, send_counts_, send_.offsets},
                                                  {received_.data(), receive_counts_, receive_.offsets}, row_bytes_);
  }

  std::span<const std::byte> unpack() override { return {received_.data(), received_bytes()}; }

 private:
  size_t received_bytes() const { return static_cast<size_t>(receive_.offsets.back()) * row_bytes_; }

  const Communicator& group_;
  BufferPool& pool_;
  Side send_;
  Side receive_;
  size_t row_bytes_;
  std::vector<int64_t> send_counts_, receive_counts_;
  const std::byte* message_ = nullptr;
  Buffer packed_;
  Buffer received_;
};

class FlatExchange : public Exchange {
 public:
  explicit FlatExchange(const Communicator& group) : group_(group) {}

  std::string_view name() const override { return "flat"; }

  // Until learn_counts, route.receive.row_counts holds what arrives: rows and slots of each peer in turn.
  Request announce(Route& route) override {
    const auto num_ranks = static_cast<size_t>(group_.size());
    Buffer message(num_ranks * 2 * sizeof(int64_t));
    for (size_t peer = 0; peer < num_ranks; ++peer) {
      message.as<int64_t>()[2 * peer] = route.plan.row_counts[peer];
      message.as<int64_t>()[2 * peer + 1] = route.plan.slot_counts[peer];
    }
    route.receive.row_counts.assign(2 * num_ranks, -1);
    Request request = group_.all_to_all(std::span<const int64_t>(message.as<int64_t>(), 2 * num_ranks),
                                        std::span<int64_t>(route.receive.row_counts));
    request.own(std::move(message));
    return request;
  }

  void learn_counts(Route& route) override {
    ReceiveCounts& receive = route.receive;
    const std::vector<int64_t> pairs = std::exchange(receive.row_counts, {});
    receive.slot_counts.clear();
    for (size_t i = 0; i < pairs.size(); i += 2) {
      receive.row_counts.push_back(pairs[i]);
      receive.slot_counts.push_back(pairs[i + 1]);
    }
    receive.row_offsets = offsets_of(receive.row_counts);
    receive.slot_offsets = offsets_of(receive.slot_counts);
    checked_int(receive.num_rows(), "rows to receive");
    checked_int(receive.num_slots(), "slots to receive");
  }

  std::unique_ptr<RowTransfer> transfer(const Route& route, Direction direction, Unit unit,
                                        size_t element_bytes) override {
    const Side planned = plan_side(route, unit);
    const Side received = receive_side(route, unit);
    if (direction == Direction::to_experts) {
      return std::make_unique<FlatTransfer>(group_, pool_, planned, received, element_bytes);
    }
    return std::make_unique<FlatTransfer>(group_, pool_, received, planned, element_bytes);
  }

 private:
  const Communicator& group_;
  BufferPool pool_;
};

}  // namespace

std::unique_ptr<Exchange> make_flat_exchange(const Communicator& group) {
  return std::make_unique<FlatExchange>(group);
}

}  // namespace cadre
