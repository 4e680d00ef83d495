// SPDX-License-Identifier: Apache-2.0
#include "layers/facade/dispatcher.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/choose.hpp"
#include "comm/group/agreement.hpp"
#include "comm/progress/engine.hpp"

namespace cadre::moe {
inline namespace v1 {
namespace {

ExpertMap map_of(const Options& options, int num_ranks) {
  return options.experts_of.empty() ? ExpertMap::contiguous(options.num_experts, num_ranks)
                                    : ExpertMap::of(options.num_experts, options.experts_of);
}

Lane lane_of(Communicator group) {
  Communicator expert = group.duplicate("dispatcher");
  return {0, std::move(expert), std::move(group)};
}

cadre::Wire wire_of(Wire wire) {
  switch (wire) {
    case Wire::fp32: return cadre::Wire::same;
    case Wire::bf16: return cadre::Wire::bf16;
    case Wire::fp8: return cadre::Wire::fp8;
  }
  throw Error(ErrorKind::input, "a wire that is none of fp32, bf16, fp8");
}

size_t row_bytes_of(const Options& options) { return static_cast<size_t>(options.width) * sizeof(float); }

// Rows of the tokens, and results of experts that get half more than their share.
size_t shared_bytes(const Options& options) {
  const auto rows = static_cast<size_t>(options.max_tokens);
  return row_bytes_of(options) * (rows + rows * static_cast<size_t>(options.top_k) * 3 / 2);
}

Choice choose(const ExchangeSetup& setup, const Options& options, const ExchangeWorkload& workload) {
  if (options.strategy == "auto") return choose_exchange(setup, workload);
  return {make_exchange(options.strategy, setup), options.strategy};
}

}  // namespace

void check_options(const Options& o, int num_ranks) {
  CADRE_CHECK(o.num_experts >= 1, fmt::format("num_experts = {}, at least 1", o.num_experts));
  CADRE_CHECK(o.top_k >= 1 && o.top_k <= o.num_experts,
              fmt::format("top_k = {} of {} experts, 1 to num_experts", o.top_k, o.num_experts));
  CADRE_CHECK(o.width >= 1, fmt::format("width = {}, at least 1", o.width), "the number of floats of a row");
  CADRE_CHECK(o.max_tokens >= 1, fmt::format("max_tokens = {}, at least 1", o.max_tokens));
  CADRE_CHECK(o.threads >= 1, fmt::format("threads = {}, at least 1", o.threads));
  CADRE_CHECK(o.deadline_seconds > 0.0, fmt::format("deadline_seconds = {}, above 0", o.deadline_seconds));
  CADRE_CHECK(o.strategy == "auto" || std::ranges::find(kStrategies, o.strategy) != std::end(kStrategies),
              fmt::format("strategy = '{}', allowed: auto | {}", o.strategy, fmt::join(kStrategies, " | ")));
  CADRE_CHECK(o.experts_of.empty() || static_cast<int>(o.experts_of.size()) == num_ranks,
              fmt::format("experts_of has {} lists for {} ranks", o.experts_of.size(), num_ranks),
              "one list of experts for each rank of the communicator");
  static_cast<void>(map_of(o, num_ranks));
}

DispatcherState::DispatcherState(Ranks ranks, const Options& options, std::unique_ptr<Kernels> kernels)
    : options_(options),
      map_(map_of(options, ranks.group.size())),
      ranks_{std::move(ranks.job), std::move(ranks.leave_to_process_end)},
      lane_(lane_of(std::move(ranks.group))),
      kernels_(std::move(kernels)),
      arena_(Arena::Mode::real, /*poison=*/false, kernels_->memory()),
      pool_(kernels_->memory(), kernels_->device_codec() == nullptr ? Outgrown::freed : Outgrown::kept),
      staging_({}, 0) {
  const bool on_host = kernels_->device_codec() == nullptr;
  const ExchangeSetup setup = {.group = group(),
                               .topology = discover_topology(group()),
                               .max_tokens = options.max_tokens,
                               .top_k = options.top_k,
                               .max_row_bytes = row_bytes_of(options),
                               .memory_bytes = on_host ? shared_bytes(options) : 0,
                               .device_codec = kernels_->device_codec(),
                               .transport_follows = group().transport().follow(kernels_->queue())};
  Choice choice = choose(setup, options,
                         {.tokens = options.max_tokens,
                          .top_k = options.top_k,
                          .dispatch = dispatch_format(),
                          .combine = combine_format(),
                          .slot_order = options.sums == Sums::slots});
  exchange_ = std::move(choice.exchange);
  strategy_ = std::move(choice.reason);
  if (on_host) {
    staging_ = Staging(exchange_->memory(), static_cast<size_t>(options.max_tokens) * row_bytes_of(options));
  }
}

RowFormat DispatcherState::dispatch_format() const {
  return {DType::f32, options_.width, wire_of(options_.dispatch_wire)};
}

RowFormat DispatcherState::combine_format() const {
  return {DType::f32, options_.width, wire_of(options_.combine_wire)};
}

CombineMode DispatcherState::combine_mode() const {
  return options_.sums == Sums::slots ? CombineMode::slot_order : CombineMode::partial;
}

void DispatcherState::run(const char* phase, Task<void> task) {
  lane_.enter(phase);
  Engine(options_.deadline_seconds).run(lane_, task);
}

Dispatcher make_dispatcher_of(Ranks ranks, const Options& options, std::unique_ptr<Kernels> kernels) {
  return Dispatcher(std::make_shared<DispatcherState>(std::move(ranks), options, std::move(kernels)));
}

}  // namespace v1
}  // namespace cadre::moe
