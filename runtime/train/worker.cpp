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

Wire wire_named(const std::string& name) {
  if (name == "bf16") return Wire::bf16;
  return name == "fp8" ? Wire::fp8 : Wire::same;
}

}  // namespace

WireFormats wire_formats(const ExchangeConfig& config) {
  return {.dispatch = wire_named(config.dispatch_format), .combine = wire_named(config.combine_format)};
}

CombineMode combine_mode(const ExchangeConfig& config) {
  return config.combine == "slot_order" ? CombineMode::slot_order : CombineMode::partial;
}

namespace {

Choice make_lane_exchange(const Communicator& group, const WorkerOptions& options) {
  const size_t activations = options.activation_bytes == 0 ? kSmallActivations : options.activation_bytes;
  const ModelConfig& model = options.model;
  const ExchangeSetup setup = {.group = group,
                               .topology = discover_topology(group),
                               .max_tokens = std::max<int64_t>(options.max_tokens, 1),
                               .top_k = static_cast<int>(model.num_experts_per_tok),
                               .max_row_bytes = static_cast<size_t>(model.hidden_size) * sizeof(float),
                               .memory_bytes = kActivationReserve * activations};
  const std::string& strategy = options.exchange.strategy;
  if (strategy != "auto") return {make_exchange(strategy, setup), strategy + ": as the configuration says"};
  const WireFormats wire = wire_formats(options.exchange);
  return choose_exchange(setup, {.tokens = setup.max_tokens,
                                 .top_k = setup.top_k,
                                 .dispatch = {DType::f32, model.hidden_size, wire.dispatch},
                                 .combine = {DType::f32, model.hidden_size, wire.combine},
                                 .slot_order = combine_mode(options.exchange) == CombineMode::slot_order});
}

}  // namespace

Worker::Worker(Communicator world, const WorkerOptions& options)
    : world_(std::move(world)),
      grid_(Grid::make(world_.size(), /*pipeline=*/1, static_cast<int>(options.parallel.expert))),
      lane_(make_lane(world_, grid_, 0)),
      expert_data_group_(world_.split(grid_.expert_data_group(world_.rank()), world_.rank(), "expert data")),
      engine_(options.exchange.deadline_s),
      kernels_(make_cpu_kernels(options.compute.precision == "bf16" ? Precision::bf16 : Precision::fp32)),
      choice_(make_lane_exchange(lane_.expert_group(), options)),
      combine_(combine_mode(options.exchange)),
      wire_(wire_formats(options.exchange)),
      model_(options.model, make_expert_map(options.model, grid_.expert), grid_.expert_rank(world_.rank())) {
  store_.add_all(model_);
  store_.allocate(DType::f32, options.with_grad, /*dry_run=*/false);
  if (!exchange().memory().empty()) {
    arena_.lend(exchange().memory());
  } else if (options.activation_bytes > 0) {
    arena_.reserve(kActivationReserve * options.activation_bytes);
  }
}

LaneContext Worker::training_context(double token_scale) {
  return {{*kernels_, arena_, DType::f32}, lane_, *choice_.exchange, combine_, wire_, token_scale, /*training=*/true};
}

LaneContext Worker::inference_context() {
  return {{*kernels_, arena_, DType::f32}, lane_, *choice_.exchange, combine_, wire_, 1.0, /*training=*/false};
}

}  // namespace cadre
