// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/step.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/base/trace.hpp"

namespace cadre {
namespace {

// Elements of one all_reduce: large enough for bandwidth, small enough for the int that MPI counts are.
constexpr int64_t kBucketElements = int64_t{4} << 20;

void start_reduction(const Communicator& group, const Tensor& values, std::vector<Request>& requests) {
  if (group.size() == 1) return;
  for (int64_t first = 0; first < values.numel(); first += kBucketElements) {
    const auto count = static_cast<size_t>(std::min(kBucketElements, values.numel() - first));
    requests.push_back(group.all_reduce(std::span(values.data<float>() + first, count), ReduceOp::sum));
  }
}

void add_layer(const MoeLayer::Saved& saved, std::vector<int64_t>& counts, LocalStep& local) {
  for (size_t e = 0; e < counts.size(); ++e) counts[e] += saved.router.counts[e];
  local.balance_loss += saved.balance_loss;
  local.slots_planned += saved.route.plan.num_slots();
  local.slots_received += saved.route.receive.num_slots();
  local.slots_dropped += saved.route.plan.num_dropped;
}

}  // namespace

LocalStep empty_local_step(const Model& model) {
  LocalStep local;
  const auto num_experts = static_cast<size_t>(model.config().n_routed_experts);
  local.expert_counts.assign(model.moe_layers().size(), std::vector<int64_t>(num_experts, 0));
  return local;
}

Task<void> forward(const Model& model, LaneContext& ctx, MicroBatch& micro_batch, Model::Saved& saved,
                   LocalStep& local) {
  const Traffic before = ctx.exchange.traffic();
  Task<double> pass = model.forward(ctx, micro_batch.tokens(), saved);
  const double loss_sum = co_await pass;
  const Traffic traffic = ctx.exchange.traffic() - before;
  local.crossing_bytes += traffic.between_ranks;
  local.between_hosts_bytes += traffic.between_hosts;
  local.loss_sum += loss_sum;
  local.num_tokens += micro_batch.num_tokens();
  const std::vector<int>& moe_layers = model.moe_layers();
  for (size_t i = 0; i < moe_layers.size(); ++i) {
    add_layer(saved.blocks[moe_layers[i]].moe, local.expert_counts[i], local);
  }
}

void reduce_gradients(Worker& worker) {
  worker.lane().position.layer = -1;
  worker.lane().enter("gradient reduction");
  worker.store().complete_grads();
  std::vector<Request> requests;
  start_reduction(worker.world(), worker.store().shared_grads(), requests);
  start_reduction(worker.expert_data_group(), worker.store().expert_grads(), requests);
  for (Request& request : requests) worker.await(request);
}

double gradient_norm(Worker& worker) {
  worker.lane().enter("gradient norm");
  std::vector<double> squares = {worker.kernels().sum_squares(worker.store().expert_grads())};
  Request summed = worker.expert_group().all_reduce(std::span(squares), ReduceOp::sum);
  worker.await(summed);
  return std::sqrt(squares[0] + worker.kernels().sum_squares(worker.store().shared_grads()));
}

}  // namespace cadre
