// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/dispatch.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/job/poll.hpp"

namespace cadre {
namespace {

// Which of the elements are those at `places`: the index of an index.
std::vector<int32_t> through(const Elements& elements, std::span<const int32_t> places) {
  std::vector<int32_t> index(places.begin(), places.end());
  if (elements.index.empty()) return index;
  for (int32_t& place : index) place = elements.index[place];
  return index;
}

// For dry runs: slots spread evenly over rows and experts.
ExpertBatch even_batch(const ReceiveCounts& receive, int num_experts) {
  std::vector<int32_t> row_slot_counts(static_cast<size_t>(receive.num_rows()), 0);
  std::vector<int32_t> slot_expert(static_cast<size_t>(receive.num_slots()));
  for (size_t slot = 0; slot < slot_expert.size(); ++slot) {
    slot_expert[slot] = static_cast<int32_t>(slot % static_cast<size_t>(num_experts));
    ++row_slot_counts[slot % row_slot_counts.size()];
  }
  return make_expert_batch(row_slot_counts, slot_expert, num_experts);
}

}  // namespace

ExpertRows::ExpertRows(std::unique_ptr<RowTransfer> transfer, const Elements& arrived, std::span<const int32_t> places)
    : transfer_(std::move(transfer)), rows_{arrived.base, arrived.stride}, index_(through(arrived, places)) {}

// Travels beside the rows, one per slot, in the order of the plan.
struct Dispatch::SlotRecord {
  int32_t row;     // of this (source, destination) pair
  int32_t expert;  // index on the destination rank
  double weight;
};

Dispatch::Dispatch(Exchange& exchange, std::span<const int32_t> ids, int top_k, const ExpertMap& map,
                   std::vector<double> weights)
    : Dispatch(exchange, make_dispatch_plan(ids, top_k, map, exchange.rank()), map, std::move(weights)) {}

Dispatch::Dispatch(Exchange& exchange, DispatchPlan plan, const ExpertMap& map, std::vector<double> weights)
    : exchange_(exchange),
      num_local_experts_(static_cast<int>(map.experts_of(exchange.rank()).size())),
      weights_(std::move(weights)),
      route_(exchange.route(std::move(plan))) {
  CADRE_ASSERT(weights_.size() == static_cast<size_t>(this->plan().num_tokens * this->plan().top_k));
}

Task<void> Dispatch::announce() {
  Task<void> counts = learn_counts();
  co_await counts;
  const auto records = send_records();
  co_await records->finish();
  learn_batch(*records);
}

Task<void> Dispatch::learn_counts() {
  co_await route_->announce();
  route_->learn_counts();
}

std::unique_ptr<RowTransfer> Dispatch::send_records() {
  const DispatchPlan& plan = route_->plan();
  std::vector<SlotRecord> records;
  records.reserve(plan.slots.size());
  for (int rank = 0; rank < plan.num_ranks(); ++rank) {
    const int64_t first_row = plan.row_offsets[rank];
    for (int64_t row = first_row; row < plan.row_offsets[rank + 1]; ++row) {
      for (int32_t at = plan.row_slots[row]; at < plan.row_slots[row + 1]; ++at) {
        records.push_back({static_cast<int32_t>(row - first_row), plan.slot_expert[at], weights_[plan.slots[at]]});
      }
    }
  }
  auto transfer = route_->transfer(Direction::to_experts, Unit::slot, RowFormat::of_bytes(sizeof(SlotRecord)));
  transfer->pack({reinterpret_cast<const std::byte*>(records.data()), sizeof(SlotRecord)});
  transfer->start();
  return transfer;
}

void Dispatch::learn_batch(RowTransfer& transfer) {
  const ReceiveCounts& receive = route_->receive();
  const auto num_slots = static_cast<size_t>(receive.num_slots());
  announced_ = true;
  slot_weights_.assign(num_slots, 0.0);
  if (exchange_.is_dry()) {
    batch_ = even_batch(receive, num_local_experts_);
    return;
  }
  const auto* records = reinterpret_cast<const SlotRecord*>(transfer.unpack().base);
  std::vector<int32_t> row_slot_counts(static_cast<size_t>(receive.num_rows()), 0);
  std::vector<int32_t> slot_expert(num_slots);
  for (size_t source = 0; source < receive.slot_counts.size(); ++source) {
    for (int64_t slot = receive.slot_offsets[source]; slot < receive.slot_offsets[source + 1]; ++slot) {
      const SlotRecord& record = records[slot];
      CADRE_CHECK_PEER(record.row >= 0 && record.row < receive.row_counts[source],
                       fmt::format("a slot from rank {} of the expert group names row {} of {}", source, record.row,
                                   receive.row_counts[source]));
      ++row_slot_counts[receive.row_offsets[source] + record.row];
      slot_expert[slot] = record.expert;
      slot_weights_[slot] = record.weight;
    }
  }
  batch_ = make_expert_batch(row_slot_counts, slot_expert, num_local_experts_);
}

Task<ExpertRows> Dispatch::to_experts(Elements tokens, RowFormat format, Computed computed, Meanwhile meanwhile) {
  std::unique_ptr<RowTransfer> records;
  if (!announced_) {
    Task<void> counts = learn_counts();
    co_await counts;
  }
  if (computed && !exchange_.packs_later()) {
    Request rows_there = computed();
    co_await rows_there;
  }
  if (!announced_) records = send_records();
  auto rows = route_->transfer(Direction::to_experts, Unit::row, format);
  rows->pack({tokens.base, tokens.stride, plan().row_token});
  co_await rows->packed();
  rows->start();
  if (meanwhile) {
    std::optional<Watch> watch_records;
    if (records) watch_records.emplace(records->finish());
    const Watch watch_rows(rows->finish());
    meanwhile();
  }
  if (records) {
    co_await records->finish();
    learn_batch(*records);
    records.reset();
  }
  co_await rows->finish();
  const Elements arrived = rows->unpack();
  co_return ExpertRows(std::move(rows), arrived, batch_.place_row);
}

Task<ExpertRows> Dispatch::slots_to_experts(Elements slots, RowFormat format) {
  std::vector<int32_t> by_plan(plan().token_slot.size());  // of each slot of the plan, its place in (token, k) order
  for (size_t i = 0; i < by_plan.size(); ++i) by_plan[plan().token_slot[i]] = static_cast<int32_t>(i);
  auto transfer = route_->transfer(Direction::to_experts, Unit::slot, format);
  transfer->pack({slots.base, slots.stride, by_plan});
  co_await transfer->packed();
  transfer->start();
  co_await transfer->finish();
  const Elements arrived = transfer->unpack();
  co_return ExpertRows(std::move(transfer), arrived, batch_.place_slot);
}

Task<void> Dispatch::to_tokens(Elements results, RowFormat format, Weighted weighted, CombineMode mode,
                               RowAdder& adder) {
  const bool by_slot = mode == CombineMode::slot_order || exchange_.prefers_slots();
  const auto transfer = route_->transfer(Direction::to_tokens, by_slot ? Unit::slot : Unit::row, format);
  if (by_slot) {
    results.index = batch_.row_place;
  } else {
    results = adder.add_at_experts({results, batch_.row_places, batch_.row_place,
                                    weighted == Weighted::yes ? slot_weights_ : std::span<const double>()});
  }
  if (!exchange_.packs_later()) {
    Request computed = adder.computed();
    co_await computed;
  }
  transfer->pack(results);
  co_await transfer->packed();
  transfer->start();
  co_await transfer->finish();
  const Elements arrived = transfer->unpack();
  std::vector<double> weights;
  if (by_slot && weighted == Weighted::yes) weights = token_weights();
  Request added = adder.add_at_tokens({arrived, arrived.offsets, arrived.index, weights});
  co_await added;
  co_await transfer->release();
}

Task<void> Dispatch::numbers_to_tokens(Elements numbers, size_t number_bytes, std::byte* into, Request computed,
                                       Meanwhile meanwhile) {
  co_await computed;
  const auto transfer = route_->transfer(Direction::to_tokens, Unit::slot, RowFormat::of_bytes(number_bytes));
  transfer->pack({numbers.base, numbers.stride, batch_.row_place});
  transfer->start();
  if (meanwhile) {
    const Watch watch(transfer->finish());
    meanwhile();
  }
  co_await transfer->finish();
  if (exchange_.is_dry()) co_return;
  const Elements arrived = transfer->unpack();
  std::fill_n(into, weights_.size() * number_bytes, std::byte{});
  for (int64_t i = 0; i < plan().num_slots(); ++i) {
    const auto slot = static_cast<size_t>(plan().slots[plan().token_slot[i]]);
    std::memcpy(into + slot * number_bytes, arrived.at(i), number_bytes);
  }
}

std::vector<double> Dispatch::place_weights() const {
  std::vector<double> weights;
  weights.reserve(batch_.place_slot.size());
  for (const int32_t slot : batch_.place_slot) weights.push_back(slot_weights_[slot]);
  return weights;
}

// Of the plan's slots, in the order of (token, k).
std::vector<double> Dispatch::token_weights() const {
  std::vector<double> weights;
  weights.reserve(plan().token_slot.size());
  for (const int32_t slot : plan().token_slot) weights.push_back(weights_[plan().slots[slot]]);
  return weights;
}

}  // namespace cadre
