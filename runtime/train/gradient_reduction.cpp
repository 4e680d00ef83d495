// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/gradient_reduction.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Elements of one all_reduce: large enough for bandwidth, small enough for the int that MPI counts are.
constexpr int64_t kReductionElements = int64_t{4} << 20;

// Those without a layer need names of their own: ranks that hold both reduce them in any order.
const char* reduction_phase(const Stage& stage, int bucket) {
  if (stage.is_block(bucket)) return "gradient reduction";
  return bucket == 0 ? "embedding gradient reduction" : "head gradient reduction";
}

std::span<float> grad_values(const Parameter& parameter) {
  return {parameter.grad.data<float>(), static_cast<size_t>(parameter.grad.numel())};
}

}  // namespace

// All ranks hold the same number of stages, and those that share one share them all.
GradientReduction::GradientReduction(const ProcessGroups& groups, Model& model, const ExpertMaps& maps,
                                     ParameterStore& store, Lanes& lanes)
    : job_(groups.world.job()), model_(model), store_(store), lanes_(lanes) {
  const Communicator& world = groups.world;
  int num_buckets = 0;
  for (const auto& stage : model_.stages()) {
    const int color = groups.routes.rows_of(stage->place().index).front();
    const int expert_color = color * groups.grid.expert + groups.expert_rank();
    stages_.push_back(
        {world.split(color, world.rank(), "data"), world.split(expert_color, world.rank(), "expert data")});
    first_bucket_.push_back(num_buckets);
    num_buckets += stage->num_buckets();
  }
  if (maps.have_replicas()) {
    replica_group_.emplace(world.split(groups.grid.expert_group(world.rank()), world.rank(), "expert/replicas"));
  }
  const int first_row = groups.routes.rows_of(0).front();
  const int last_row = groups.routes.rows_of(groups.routes.num_stages() - 1).front();
  if (first_row != last_row && embeds_at_end(model_.config())) {
    embedding_rows_ = {first_row, last_row};
    embedding_group_.emplace(world.split(groups.grid.pipeline_group(world.rank()), world.rank(), "pipeline/embedding"));
  }
}

size_t GradientReduction::local_index(int stage) const {
  const auto found =
      std::ranges::find_if(model_.stages(), [&](const auto& here) { return here->place().index == stage; });
  CADRE_ASSERT(found != model_.stages().end());
  return static_cast<size_t>(found - model_.stages().begin());
}

void GradientReduction::start(int stage, int bucket) {
  const size_t index = local_index(stage);
  const int stored = first_bucket_[index] + bucket;
  store_.complete_grads(stored);
  // Sums of holders are added by the host; so is all else where the transport does not follow the device.
  if (!lanes_.transport_follows() || embedding_group_ || replica_group_) lanes_.kernels().synchronize();
  Stage& reduced = *model_.stages()[index];
  Position at = {.step = lanes_.lane().position.step, .phase = reduction_phase(reduced, bucket)};
  if (reduced.is_block(bucket)) at.layer = reduced.layers().first + bucket - 1;
  Tracer& tracer = job_.tracer();
  const TraceActivity activity(tracer, TraceKind::compute, at);
  std::vector<Request> started = start_sum(stages_[index].shared, Placement::shared, stored);
  if (std::vector<HeldValues> embedding = embedding_grads(reduced, stored); !embedding.empty()) {
    std::vector<Request> summed = std::exchange(started, {});
    started.push_back(sum_over_holders(*embedding_group_, std::move(embedding), /*tag=*/0, std::move(summed)));
  }
  at.phase = "expert gradient reduction";
  tracer.switch_to(at);
  std::vector<Request> experts = start_sum(stages_[index].expert, Placement::expert, stored);
  if (std::vector<HeldValues> replicated = replicated_grads(stored); !replicated.empty()) {
    started.push_back(sum_over_holders(*replica_group_, std::move(replicated), stored, std::move(experts)));
  } else {
    std::ranges::move(experts, std::back_inserter(started));
  }
  for (Request& request : started) {
    started_.push_back(std::move(request));
    job_.poller().watch(started_.back(), Poller::Kind::other);
  }
}

std::vector<Request> GradientReduction::start_sum(const Communicator& group, Placement placement, int stored_bucket) {
  std::vector<Request> started;
  if (group.size() == 1) return started;
  const Tensor values = store_.grads_of(placement, stored_bucket);
  for (int64_t first = 0; first < values.numel(); first += kReductionElements) {
    const auto count = static_cast<size_t>(std::min(kReductionElements, values.numel() - first));
    started.push_back(
        group.all_reduce(std::span(values.data<float>() + first, count), store_.grad_owner(), ReduceOp::sum));
  }
  return started;
}

// By global id of the expert, as on every rank.
std::vector<HeldValues> GradientReduction::replicated_grads(int stored_bucket) {
  std::vector<HeldValues> held;
  for (Parameter* parameter : store_.parameters_of(stored_bucket)) {
    if (parameter->holders.size() < 2) continue;
    held.push_back({grad_values(*parameter), store_.grad_owner(), parameter->holders, &store_.memory()});
  }
  return held;
}

// What the bucket holds of the embedding, where the other end of the pipeline holds it too, on another rank.
std::vector<HeldValues> GradientReduction::embedding_grads(Stage& stage, int stored_bucket) {
  std::vector<HeldValues> held;
  if (!embedding_group_) return held;
  for (Parameter* parameter : store_.parameters_of(stored_bucket)) {
    if (parameter != stage.embedding_table() && parameter != stage.embedding_copy()) continue;
    held.push_back({grad_values(*parameter), store_.grad_owner(), embedding_rows_, &store_.memory()});
  }
  return held;
}

// Where both are here.
void GradientReduction::add_embedding_copy() {
  const Parameter* const table = model_.stages().front()->embedding_table();
  const Parameter* const copy = model_.stages().back()->embedding_copy();
  if (table == nullptr || copy == nullptr) return;
  lanes_.kernels().add(table->grad, copy->grad, table->grad);
  lanes_.kernels().copy(table->grad, copy->grad);
  lanes_.kernels().synchronize();
}

void GradientReduction::finish() {
  lanes_.lane().position = {.step = lanes_.lane().position.step};
  lanes_.lane().enter("gradient reduction");
  for (Request& request : started_) {
    lanes_.await(request);
    job_.poller().unwatch(request);
  }
  started_.clear();
  add_embedding_copy();
}

void GradientReduction::sum_over_stage(int stage, std::vector<int64_t>& values) const {
  if (values.empty()) return;
  values = lanes_.await(stages_[local_index(stage)].shared.all_reduce(std::move(values), ReduceOp::sum));
}

}  // namespace cadre
