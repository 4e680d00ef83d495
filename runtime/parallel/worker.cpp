// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/worker.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/parallel/devices.hpp"
#include "runtime/parallel/expert_placement.hpp"

namespace cadre {
namespace {

// The deadline is set before the first group is made.
ProcessGroups make_groups(Communicator world, const WorkerOptions& options) {
  world.job().set_deadline(options.exchange.deadline_s);
  return {over_devices(std::move(world), options.compute, options.exchange), options.routes, options.parallel};
}

std::unique_ptr<Kernels> make_back_end(const Communicator& world, const WorkerOptions& options) {
  return options.make_kernels ? options.make_kernels() : make_kernels(world, options.compute, options.row_bits);
}

ExpertMaps agreed_maps(const ProcessGroups& groups, const WorkerOptions& options) {
  ExpertMaps maps = place_experts(options.model, options.parallel, groups.grid.expert);
  check_same_maps(groups.world, maps, options.model, options.parallel.placement);
  CADRE_CHECK(options.exchange.balance == "none" || !maps.have_replicas(),
              "exchange.balance = host, allowed: none where experts have replicas (parallel.redundant_experts, a "
              "placement with redundant experts)",
              "rows of a busy expert are cut over its host without replicas");
  return maps;
}

}  // namespace

Worker::Worker(Communicator world, const WorkerOptions& options)
    : groups_(make_groups(std::move(world), options)),
      kernels_(make_back_end(groups_.world, options)),
      maps_(agreed_maps(groups_, options)),
      model_(options.model, groups_.routes.stages_of(row()), maps_, groups_.expert_rank(), options.adapter),
      lanes_(groups_, *kernels_, options),
      shards_(model_, groups_.routes, groups_.grid, groups_.world.rank(),
              options.with_grad && options.parallel.shard_optimizer),
      gradient_shards_(shards_, options.parallel.shard_gradients),
      gradients_(groups_, model_, maps_, store_, shards_, gradient_shards_, gradient_wire(options.exchange),
                 options.exchange.balance == "host", lanes_),
      with_grad_(options.with_grad) {
  fill_store(options);
  if (options.exchange.progress == "thread") start_progress(static_cast<int>(options.compute.threads));
}

void Worker::start_progress(int num_threads) {
  const SpareCpu spare = find_spare_cpu(world(), num_threads);
  if (spare.cpu) {
    progress_thread_ = std::make_unique<ProgressThread>(world().transport(), *spare.cpu);
  } else {
    progress_note_ = fmt::format("exchange.progress = thread does not run: {}", spare.why_not);
  }
}

void Worker::fill_store(const WorkerOptions& options) {
  for (const auto& stage : model_.stages()) {
    for (int bucket = 0; bucket < stage->num_buckets(); ++bucket) {
      store_.begin_bucket();
      stage->each_parameter(bucket, [&](Parameter& parameter) {
        const int slice = shards_.owner(parameter).value_or(world().size());  // behind the slices: what all keep
        store_.add(parameter, slice, gradient_shards_.drops(parameter) ? GradMemory::lent : GradMemory::own);
      });
    }
  }
  find_first_held();
  if (options.exchange.balance == "host" && !moe_layers_of(options.model).empty()) {
    host_experts_ = std::make_unique<HostExperts>(world(), expert_group(), expert_value_bytes(store_.parameters()));
  }
  store_.allocate(DType::f32, with_grad_, /*dry_run=*/false, kernels_->memory(),
                  host_experts_ ? &host_experts_->memory() : nullptr);
  gradient_shards_.allocate(model_, /*dry_run=*/false);
  if (host_experts_) host_experts_->publish(mixtures(), with_grad_);
}

void Worker::forget_grads() {
  gradients_.begin_step();
  store_.forget_grads();
  for (MoeLayer* const layer : mixtures()) layer->forget_shared_grads();
}

// Of the stages that are here.
std::vector<MoeLayer*> Worker::mixtures() {
  std::vector<MoeLayer*> layers;
  for (const int layer : moe_layers_of(model_.config())) {
    if (Stage* const stage = model_.stage_with(layer)) layers.push_back(&stage->block(layer).moe());
  }
  return layers;
}

void Worker::find_first_held() {
  first_held_.clear();
  for (const auto& stage : model_.stages()) {
    stage->each_parameter([&](const Parameter& parameter) {
      if (cadre::is_first_holder(parameter, stage->place().index, groups_.routes, groups_.grid, world().rank())) {
        first_held_.push_back(&parameter);
      }
    });
  }
  std::ranges::sort(first_held_);
}

void Worker::relocate(const ExpertMaps& maps) {
  for (const int layer : moe_layers_of(model_.config())) {
    Stage* const stage = model_.stage_with(layer);
    if (stage != nullptr) stage->block(layer).moe().relocate(maps.of(layer), groups_.expert_rank());
  }
  maps_ = maps;
  find_first_held();
  if (host_experts_) host_experts_->publish(mixtures(), with_grad_);
}

bool Worker::is_first_holder(const Parameter& parameter) const {
  return std::ranges::binary_search(first_held_, &parameter);
}

}  // namespace cadre
