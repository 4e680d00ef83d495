// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/worker.hpp"

#include <utility>

namespace cadre {
namespace {

Lane make_lane(const Communicator& world, const Grid& grid, int id) {
  return {id, world.split(grid.expert_group(world.rank()), world.rank(), fmt::format("expert/lane {}", id)),
          world.duplicate(fmt::format("data/lane {}", id))};
}

}  // namespace

CombineMode combine_mode(const ExchangeConfig& config) {
  return config.combine == "slot_order" ? CombineMode::slot_order : CombineMode::partial;
}

Worker::Worker(Communicator world, const WorkerOptions& options)
    : world_(std::move(world)),
      grid_(Grid::make(world_.size(), /*pipeline=*/1, static_cast<int>(options.parallel.expert))),
      lane_(make_lane(world_, grid_, 0)),
      expert_data_group_(world_.split(grid_.expert_data_group(world_.rank()), world_.rank(), "expert data")),
      engine_(options.exchange.deadline_s),
      kernels_(make_cpu_kernels(options.compute.precision == "bf16" ? Precision::bf16 : Precision::fp32)),
      exchange_(make_flat_exchange(lane_.expert_group())),
      combine_(combine_mode(options.exchange)),
      model_(options.model, make_expert_map(options.model, grid_.expert), grid_.expert_rank(world_.rank())) {
  store_.add_all(model_);
  store_.allocate(DType::f32, options.with_grad, /*dry_run=*/false);
}

LaneContext Worker::training_context(double token_scale) {
  return {{*kernels_, arena_, DType::f32}, lane_, *exchange_, combine_, token_scale, /*training=*/true};
}

LaneContext Worker::inference_context() {
  return {{*kernels_, arena_, DType::f32}, lane_, *exchange_, combine_, 1.0, /*training=*/false};
}

}  // namespace cadre
