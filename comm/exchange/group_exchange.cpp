// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/group_exchange.hpp"

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr size_t kNumbers = 3;  // told to each peer of a plan: rows, slots and an extra one

}  // namespace

// Until learn_counts, route.receive.row_counts holds what arrives: rows, slots and the extra number of each peer in turn.
Request GroupExchange::announce(Route& route) {
  const auto num_ranks = static_cast<size_t>(group_.size());
  Buffer message(num_ranks * kNumbers * sizeof(int64_t));
  auto* numbers = message.as<int64_t>();
  for (size_t peer = 0; peer < num_ranks; ++peer) {
    numbers[kNumbers * peer] = route.plan.row_counts[peer];
    numbers[kNumbers * peer + 1] = route.plan.slot_counts[peer];
    numbers[kNumbers * peer + 2] = extra_for(route, static_cast<int>(peer));
  }
  route.receive.row_counts.assign(kNumbers * num_ranks, -1);
  Request request = group_.all_to_all(std::span<const int64_t>(numbers, kNumbers * num_ranks),
                                      std::span<int64_t>(route.receive.row_counts));
  request.own(std::move(message));
  return request;
}

void GroupExchange::learn_counts(Route& route) {
  ReceiveCounts& receive = route.receive;
  const std::vector<int64_t> numbers = std::exchange(receive.row_counts, {});
  receive.slot_counts.clear();
  receive.extra.clear();
  for (size_t i = 0; i < numbers.size(); i += kNumbers) {
    CADRE_CHECK_PEER(numbers[i] >= 0 && numbers[i + 1] >= 0 && numbers[i + 2] >= 0,
                     fmt::format("rank {} of '{}' announces {} rows, {} slots and {} more", i / kNumbers, group_.name(),
                                 numbers[i], numbers[i + 1], numbers[i + 2]));
    receive.row_counts.push_back(numbers[i]);
    receive.slot_counts.push_back(numbers[i + 1]);
    receive.extra.push_back(numbers[i + 2]);
  }
  receive.row_offsets = offsets_of(receive.row_counts);
  receive.slot_offsets = offsets_of(receive.slot_counts);
  checked_int(receive.num_rows(), "rows to receive");
  checked_int(receive.num_slots(), "slots to receive");
}

void GroupExchange::count_traffic(int peer, int64_t bytes) {
  if (peer == group_.rank()) return;
  traffic_.between_ranks += bytes;
  if (!same_host(peer)) traffic_.between_hosts += bytes;
}

ExchangeSetup alike_on_all_ranks(const ExchangeSetup& setup) {
  std::vector<int64_t> largest = {setup.max_tokens, static_cast<int64_t>(setup.memory_bytes)};
  Request agreed = setup.group.all_reduce(std::span(largest), ReduceOp::max);
  wait(agreed);
  ExchangeSetup alike = setup;
  alike.max_tokens = largest[0];
  alike.memory_bytes = static_cast<size_t>(largest[1]);
  return alike;
}

std::unique_ptr<Exchange> make_exchange(std::string_view strategy, const ExchangeSetup& setup) {
  if (strategy == "flat") return make_flat_exchange(setup);
  if (strategy == "all_gather") return make_all_gather_exchange(setup);
  if (strategy == "shared") return make_shared_exchange(setup);
  if (strategy == "hierarchical") return make_hierarchical_exchange(setup);
  throw Error(ErrorKind::internal, fmt::format("no exchange is called '{}'", strategy));
}

}  // namespace cadre
