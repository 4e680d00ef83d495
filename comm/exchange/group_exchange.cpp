// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/group_exchange.hpp"

#include <algorithm>
#include <array>
#include <optional>

#include "comm/base/check.hpp"
#include "comm/base/plugin.hpp"
#include "comm/group/agreement.hpp"

namespace cadre {
namespace {

constexpr size_t kNumbers = 3;  // per peer: rows, slots and an extra one

using Maker = std::unique_ptr<Exchange> (*)(const ExchangeSetup&);
#define CADRE_MAKER(name) make_##name##_exchange,
constexpr Maker kMakers[] = {CADRE_EXCHANGE_STRATEGIES(CADRE_MAKER)};  // in the order of kStrategies
#undef CADRE_MAKER

std::unique_ptr<Exchange> make_from_plugin(const ExchangeSetup& setup) {
  const Plugin plugin(setup.plugin);
  auto* const make =
      plugin.function<Exchange*(const ExchangeSetup&)>("cadre_make_exchange", "exchange.strategy = plugin");
  std::unique_ptr<Exchange> exchange(make(setup));
  CADRE_CHECK(exchange != nullptr, fmt::format("model.plugin = {} made no exchange", setup.plugin));
  return exchange;
}

// Shared memory is laid out alike on all ranks, as large as the largest of their wishes. Throws on all ranks where they
// want different strategies.
ExchangeSetup agree(int64_t strategy, const ExchangeSetup& setup) {
  const std::array mine = {setup.max_tokens, static_cast<int64_t>(setup.memory_bytes), strategy, -strategy};
  const auto largest = wait(setup.group.all_reduce(mine, ReduceOp::max));
  if (largest[2] != -largest[3]) {
    throw Error(ErrorKind::internal, fmt::format("ranks of '{}' make different exchanges", setup.group.name()));
  }
  ExchangeSetup agreed = setup;
  agreed.max_tokens = largest[0];
  agreed.memory_bytes = static_cast<size_t>(largest[1]);
  return agreed;
}

}  // namespace

void GroupExchange::count_traffic(int peer, int64_t bytes) {
  if (peer == group_.rank()) return;
  traffic_.between_ranks += bytes;
  if (!same_host(peer)) traffic_.between_hosts += bytes;
}

Request& GroupRoute::announce() {
  std::vector<int64_t> numbers;
  for (int peer = 0; peer < plan_.num_ranks(); ++peer) {
    numbers.insert(numbers.end(), {plan_.row_counts[peer], plan_.slot_counts[peer], extra_for(peer)});
  }
  announced_ = exchange_.group().all_to_all(std::move(numbers));
  return announced_.request();
}

void GroupRoute::learn_counts() {
  const std::vector<int64_t> numbers = announced_.take();
  std::vector<int64_t> extra;
  for (size_t i = 0; i < numbers.size(); i += kNumbers) {
    CADRE_CHECK_PEER(numbers[i] >= 0 && numbers[i + 1] >= 0 && numbers[i + 2] >= 0,
                     fmt::format("rank {} of '{}' announces {} rows, {} slots and {} more", i / kNumbers,
                                 exchange_.group().name(), numbers[i], numbers[i + 1], numbers[i + 2]));
    receive_.row_counts.push_back(numbers[i]);
    receive_.slot_counts.push_back(numbers[i + 1]);
    extra.push_back(numbers[i + 2]);
  }
  receive_.row_offsets = offsets_of(receive_.row_counts);
  receive_.slot_offsets = offsets_of(receive_.slot_counts);
  checked_int(receive_.num_rows(), "rows to receive");
  checked_int(receive_.num_slots(), "slots to receive");
  learn_extra(std::move(extra));
}

void check_rows_on_host(const ExchangeSetup& setup, std::string_view strategy) {
  if (setup.device_codec == nullptr) return;
  throw Error(ErrorKind::environment, fmt::format("exchange.strategy = {} with compute.device = cuda", strategy),
              "rows of a device travel as messages: use flat, all_gather or auto");
}

std::vector<std::string> strategy_names(std::initializer_list<std::string_view> before,
                                        std::initializer_list<std::string_view> after) {
  std::vector<std::string> names(before.begin(), before.end());
  names.insert(names.end(), std::begin(kStrategies), std::end(kStrategies));
  names.insert(names.end(), after.begin(), after.end());
  return names;
}

std::unique_ptr<Exchange> make_exchange(std::string_view strategy, const ExchangeSetup& setup) {
  const auto* const named = std::ranges::find(kStrategies, strategy);
  if (named == std::end(kStrategies) && strategy != kPluginStrategy) {
    throw Error(ErrorKind::internal, fmt::format("no exchange is called '{}'", strategy));
  }
  const auto index = named - std::begin(kStrategies);
  const ExchangeSetup agreed = agree(index, setup);
  std::unique_ptr<Exchange> made;
  const std::optional<Failure> failure =
      attempt_together(agreed.group, agreed.group.job().deadline_seconds(), "making the exchange",
                       [&] { made = strategy == kPluginStrategy ? make_from_plugin(agreed) : kMakers[index](agreed); });
  if (!failure) return made;
  made = nullptr;  // frees shared memory: collective on the hosts where it was allocated
  throw Error(failure->error(fmt::format("making the {} exchange", strategy)));
}

}  // namespace cadre
