// SPDX-License-Identifier: Apache-2.0
// An exchange that only counts the memory a real one would take.
#include <algorithm>
#include <utility>

#include "comm/exchange/group_exchange.hpp"

namespace cadre {
namespace {

class DryTransfer : public RowTransfer {
 public:
  // `sent` and `received` are elements; what is packed costs memory too.
  DryTransfer(ExchangeBytes& bytes, int64_t sent, int64_t received, size_t element_bytes)
      : bytes_(bytes),
        packed_bytes_(static_cast<size_t>(sent) * element_bytes),
        received_bytes_(static_cast<size_t>(received) * element_bytes) {
    hold(received_bytes_);
  }
  ~DryTransfer() override { bytes_.now -= held_; }

  void pack(const Elements& rows) override {
    if (!rows.index.empty()) hold(packed_bytes_);
  }
  void start() override {}
  Elements unpack() override { return {}; }

 private:
  void hold(size_t bytes) {
    held_ += bytes;
    bytes_.now += bytes;
    bytes_.peak = std::max(bytes_.peak, bytes_.now);
  }

  ExchangeBytes& bytes_;
  size_t packed_bytes_;
  size_t received_bytes_;
  size_t held_ = 0;
};

// Routing is uneven, most of all while a router is fresh: the busiest rank is planned to receive half more than the mean.
int64_t expected(int64_t count, size_t num_ranks) { return num_ranks == 1 ? count : count + (count + 1) / 2; }

class DryRoute : public Route {
 public:
  DryRoute(int rank, bool in_place, ExchangeBytes& bytes, DispatchPlan plan)
      : Route(std::move(plan)), rank_(rank), in_place_(in_place), bytes_(bytes) {}

  Request& announce() override { return announced_; }

  void learn_counts() override {
    const auto num_ranks = static_cast<size_t>(plan_.num_ranks());
    receive_.row_counts.assign(num_ranks, expected(plan_.row_counts[rank_], num_ranks));
    receive_.slot_counts.assign(num_ranks, expected(plan_.slot_counts[rank_], num_ranks));
    receive_.row_offsets = offsets_of(receive_.row_counts);
    receive_.slot_offsets = offsets_of(receive_.slot_counts);
  }

  std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) override {
    const Sides both = sides(direction, unit);
    const size_t bytes = in_place_ && format.row_bytes() >= kSmallestRowInPlace ? 0 : format.wire_bytes();
    return std::make_unique<DryTransfer>(bytes_, both.out.total(), both.in.total(), bytes);
  }

 private:
  int rank_;
  bool in_place_;
  ExchangeBytes& bytes_;
  Request announced_;
};

class DryExchange : public Exchange {
 public:
  DryExchange(int rank, bool in_place, ExchangeBytes& bytes) : rank_(rank), in_place_(in_place), bytes_(bytes) {}

  std::string_view name() const override { return "dry"; }
  int rank() const override { return rank_; }
  std::span<std::byte> memory() override { return in_place_ ? std::span(&no_memory_, 1) : std::span<std::byte>(); }
  std::unique_ptr<Route> route(DispatchPlan plan) override {
    return std::make_unique<DryRoute>(rank_, in_place_, bytes_, std::move(plan));
  }
  bool prefers_slots() const override { return in_place_; }
  bool is_dry() const override { return true; }

 private:
  int rank_;
  bool in_place_;
  std::byte no_memory_{};  // only its address is used
  ExchangeBytes& bytes_;
};

}  // namespace

std::unique_ptr<Exchange> make_dry_exchange(int rank, bool in_place, ExchangeBytes& bytes) {
  return std::make_unique<DryExchange>(rank, in_place, bytes);
}

}  // namespace cadre
