// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/worker.hpp"

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

Lane make_lane(const Communicator& world, const Grid& grid, int id) {
  return {id, world.split(grid.expert_group(world.rank()), world.rank(), fmt::format("expert/lane {}", id)),
          world.duplicate(fmt::format("data/lane {}", id))};
}

// Address space for twice the plan leaves room for steps whose routing is more uneven than it assumes.
constexpr size_t kActivationReserve = 2;
// Where nothing is known of the activations, as at inference.
constexpr size_t kSmallActivations = size_t{32} << 20;

}  // namespace

WireFormats wire_formats(const ExchangeConfig& config) {
  return {.dispatch = wire_named(config.dispatch_format), .combine = wire_named(config.combine_format)};
}

CombineMode combine_mode(const ExchangeConfig& config) {
  return config.combine == "slot_order" ? CombineMode::slot_order : CombineMode::partial;
}

namespace {

ExchangeSetup exchange_setup(const Communicator& group, const WorkerOptions& options) {
  const size_t activations = options.activation_bytes == 0 ? kSmallActivations : options.activation_bytes;
  return {.group = group,
          .topology = discover_topology(group),
          .max_tokens = std::max<int64_t>(options.max_tokens, 1),
          .top_k = static_cast<int>(options.model.num_experts_per_tok),
          .max_row_bytes = static_cast<size_t>(options.model.hidden_size) * sizeof(float),
          .memory_bytes = kActivationReserve * activations};
}

ExchangeWorkload workload_of(const WorkerOptions& options) {
  const WireFormats wire = wire_formats(options.exchange);
  return {.tokens = std::max<int64_t>(options.max_tokens, 1),
          .top_k = static_cast<int>(options.model.num_experts_per_tok),
          .dispatch = {DType::f32, options.model.hidden_size, wire.dispatch},
          .combine = {DType::f32, options.model.hidden_size, wire.combine},
          .slot_order = combine_mode(options.exchange) == CombineMode::slot_order};
}

}  // namespace

Worker::Worker(Communicator world, const WorkerOptions& options)
    : world_(std::move(world)),
      grid_(Grid::make(world_.size(), /*pipeline=*/1, static_cast<int>(options.parallel.expert))),
      expert_data_group_(world_.split(grid_.expert_data_group(world_.rank()), world_.rank(), "expert data")),
      engine_(options.exchange.deadline_s),
      kernels_(make_cpu_kernels(options.compute.precision == "bf16" ? Precision::bf16 : Precision::fp32)),
      combine_(combine_mode(options.exchange)),
      wire_(wire_formats(options.exchange)),
      model_(options.model, make_expert_map(options.model, grid_.expert), grid_.expert_rank(world_.rank())) {
  try {
    for (int lane = 0; lane < options.num_lanes; ++lane) add_lane(options);
  } catch (const Error& error) {
    // There was memory for one lane only: on all ranks alike.
    if (options.exchange.strategy != "auto" || error.kind() != ErrorKind::environment) throw;
    spaces_.clear();
    WorkerOptions plain = options;
    plain.exchange.strategy = "flat";
    for (int lane = 0; lane < options.num_lanes; ++lane) add_lane(plain);
    exchange_reason_ = fmt::format("flat: {}", error.what());
  }
  store_.add_all(model_);
  store_.allocate(DType::f32, options.with_grad, /*dry_run=*/false);
}

void Worker::add_lane(const WorkerOptions& options) {
  spaces_.push_back(std::make_unique<LaneSpace>(make_lane(world_, grid_, num_lanes())));
  LaneSpace& added = *spaces_.back();
  const ExchangeSetup setup = exchange_setup(added.lane.expert_group(), options);
  if (num_lanes() > 1) {
    added.exchange = make_exchange(spaces_.front()->exchange->name(), setup);
  } else if (options.exchange.strategy == "auto") {
    Choice choice = choose_exchange(setup, workload_of(options));
    added.exchange = std::move(choice.exchange);
    exchange_reason_ = std::move(choice.reason);
  } else {
    added.exchange = make_exchange(options.exchange.strategy, setup);
    exchange_reason_ = options.exchange.strategy + ": as the configuration says";
  }
  if (!added.exchange->memory().empty()) {
    added.arena.lend(added.exchange->memory());
  } else if (options.activation_bytes > 0) {
    added.arena.reserve(kActivationReserve * options.activation_bytes);
  }
}

LaneContext Worker::training_context(double token_scale, int lane) {
  LaneSpace& own = space(lane);
  return {{*kernels_, own.arena, DType::f32}, own.lane, *own.exchange, combine_, wire_, token_scale, /*training=*/true};
}

LaneContext Worker::inference_context() {
  LaneSpace& own = space(0);
  return {{*kernels_, own.arena, DType::f32}, own.lane, *own.exchange, combine_, wire_, 1.0, /*training=*/false};
}

}  // namespace cadre
