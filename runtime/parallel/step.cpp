// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/step.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/exact_sum.hpp"
#include "layers/tensor/tensor.hpp"
#include "runtime/checkpoint/file.hpp"

namespace cadre {
namespace {

void add_layer(const MoeLayer::Saved& saved, size_t mixture, LocalStep& local) {
  std::vector<int64_t>& counts = local.expert_counts[mixture];
  for (size_t e = 0; e < counts.size(); ++e) counts[e] += saved.router.counts[e];
  local.balance_loss += saved.balance_loss;
  for (const RoutedExperts::Saved* routed : saved.routed()) {
    local.slots_planned += routed->dispatch->plan().num_slots();
    local.slots_received[mixture] += routed->dispatch->num_places();
  }
  local.slots_dropped[mixture] += saved.router.num_dropped();
  local.rerouted += saved.router.num_rerouted;
}

}  // namespace

LocalStep empty_local_step(const ModelConfig& config) {
  LocalStep local;
  const auto num_experts = static_cast<size_t>(config.n_routed_experts);
  const size_t num_layers = moe_layers_of(config).size();
  local.expert_counts.assign(num_layers, std::vector<int64_t>(num_experts, 0));
  local.slots_received.assign(num_layers, 0);
  local.slots_dropped.assign(num_layers, 0);
  return local;
}

Task<void> forward(const Stage& stage, LaneContext& ctx, MicroBatch& micro_batch, Tensor x, Stage::Saved& saved,
                   Tensor& y, LocalStep& local) {
  const Traffic before = ctx.exchange.traffic();
  Task<Stage::Output> pass = stage.forward(ctx, micro_batch.tokens(), x, saved);
  const Stage::Output output = co_await pass;
  y = output.y;
  const Traffic traffic = ctx.exchange.traffic() - before;
  local.crossing_bytes += traffic.between_ranks;
  local.between_hosts_bytes += traffic.between_hosts;
  local.loss_sum += output.loss_sum;
  local.mtp_loss_sum += output.mtp_loss_sum;
  if (stage.place().is_last()) {
    local.num_tokens += micro_batch.num_tokens();
    local.loss_weight += micro_batch.loss_weight();
  }
  const std::vector<int> moe_layers = moe_layers_of(stage.config());
  for (size_t mixture = 0; mixture < moe_layers.size(); ++mixture) {
    const Block::Saved* block = stage.saved_of(saved, moe_layers[mixture]);
    if (block != nullptr) add_layer(block->moe, mixture, local);
  }
}

double gradient_norm(Worker& worker) {
  worker.lane().enter("gradient norm");
  ExactSum square;  // whichever rank holds a parameter
  for (const Parameter* parameter : worker.store().parameters()) {
    if (!parameter->grad.defined() || parameter->frozen || !worker.counts(*parameter)) continue;
    square.add(worker.kernels().sum_squares(parameter->grad));
  }
  return std::sqrt(ExactSum(worker.await(worker.world().all_reduce(square.words(), ReduceOp::sum))).value());
}

uint64_t gradient_hash(Worker& worker) {
  Digester digester;
  for (const Parameter* parameter : worker.store().parameters()) {
    if (!parameter->grad.defined() || parameter->grad.raw() == nullptr) continue;  // none: another rank keeps it
    const OnHost grad(parameter->grad, worker.store().memory());
    digester.append({grad->raw(), grad->bytes()});
  }
  return digester.digest().xxh64;
}

}  // namespace cadre
