// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/group_exchange.hpp"

#include <array>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"

namespace cadre {
namespace {

constexpr size_t kNumbers = 3;  // that each peer learns of a plan: rows, slots and an extra one

}  // namespace

Request GroupExchange::announce(Route& route) {
  const auto num_ranks = static_cast<size_t>(group_.size());
  const auto sent = std::make_shared<std::vector<int64_t>>();
  for (size_t peer = 0; peer < num_ranks; ++peer) {
    sent->insert(sent->end(),
                 {route.plan.row_counts[peer], route.plan.slot_counts[peer], extra_for(route, static_cast<int>(peer))});
  }
  const auto received = std::make_shared<std::vector<int64_t>>(sent->size());
  Request request =
      group_.transport().all_to_all(std::as_bytes(std::span(*sent)), std::as_writable_bytes(std::span(*received)));
  request.keep(sent);
  request.keep(received);
  route.receive.announced = received;
  return request;
}

void GroupExchange::learn_counts(Route& route) {
  ReceiveCounts& receive = route.receive;
  const std::vector<int64_t> numbers = std::move(*receive.announced);
  receive.announced = nullptr;
  receive.row_counts.clear();
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
  const std::array wanted = {setup.max_tokens, static_cast<int64_t>(setup.memory_bytes)};
  const auto largest = wait(setup.group.all_reduce(wanted, ReduceOp::max));
  ExchangeSetup alike = setup;
  alike.max_tokens = largest[0];
  alike.memory_bytes = static_cast<size_t>(largest[1]);
  return alike;
}

std::unique_ptr<Exchange> made_on_all_ranks(const Communicator& group, const char* strategy,
                                            const std::function<std::unique_ptr<Exchange>()>& make) {
  std::unique_ptr<Exchange> made;
  const std::optional<Failure> failure =
      attempt_together(group, group.job().deadline_seconds(), "making the exchange", [&] { made = make(); });
  if (!failure) return made;
  made = nullptr;  // collective on the hosts where it could be made
  throw Error(failure->error(fmt::format("making the {} exchange", strategy)));
}

std::unique_ptr<Exchange> make_exchange(std::string_view strategy, const ExchangeSetup& setup) {
  if (strategy == "flat") return make_flat_exchange(setup);
  if (strategy == "all_gather") return make_all_gather_exchange(setup);
  if (strategy == "shared") return make_shared_exchange(setup);
  if (strategy == "hierarchical") return make_hierarchical_exchange(setup);
  throw Error(ErrorKind::internal, fmt::format("no exchange is called '{}'", strategy));
}

}  // namespace cadre
