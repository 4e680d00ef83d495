// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/gradient_reduction.hpp"

#include <algorithm>
#include <iterator>
#include <thread>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Elements of one all_reduce: large enough for bandwidth, small enough for the int that MPI counts are.
constexpr size_t kReductionElements = size_t{4} << 20;

// Those without a layer need names of their own: ranks that hold both reduce them in any order.
const char* reduction_phase(const Stage& stage, int bucket) {
  if (stage.is_block(bucket)) return "gradient reduction";
  return bucket == 0 ? "embedding gradient reduction" : "head gradient reduction";
}

const char* gather_phase(const Stage& stage, int bucket, Placement placement) {
  if (placement == Placement::expert) return "expert parameter gather";
  if (stage.is_block(bucket)) return "parameter gather";
  return bucket == 0 ? "embedding parameter gather" : "head parameter gather";
}

std::span<float> elements_of(const Tensor& tensor) {
  return {tensor.data<float>(), static_cast<size_t>(tensor.numel())};
}

// Whether a reduce-scatter moves less than an all-reduce: the rank with the longest slice receives it from each other rank.
bool scatters_well(const RankSlices& slices, int64_t count) {
  return longest_of(slices) * static_cast<int64_t>(slices.size() - 1) <= 2 * count;
}

}  // namespace

// All ranks hold the same number of stages, and those that share one share them all.
GradientReduction::GradientReduction(const ProcessGroups& groups, Model& model, const ExpertMaps& maps,
                                     ParameterStore& store, const OptimizerShards& shards,
                                     GradientShards& gradient_shards, DType wire, bool balances, Lanes& lanes)
    : job_(groups.world.job()),
      model_(model),
      store_(store),
      shards_(shards),
      gradient_shards_(gradient_shards),
      lanes_(lanes) {
  const Communicator& world = groups.world;
  int num_buckets = 0;
  for (const auto& stage : model_.stages()) {
    stages_.push_back(make_groups(groups, stage->place().index));
    for (const Placement placement : {Placement::shared, Placement::expert})
      make_queue(stages_.back().of(placement), wire);
    first_bucket_.push_back(num_buckets);
    num_buckets += stage->num_buckets();
  }
  values_.resize(static_cast<size_t>(num_buckets));
  begun_.resize(static_cast<size_t>(num_buckets));
  if (maps.have_replicas()) {
    replica_group_.emplace(world.split(groups.grid.expert_group(world.rank()), world.rank(), "expert/replicas"));
  }
  if (balances) {
    guest_group_.emplace(world.split(groups.grid.expert_group(world.rank()), world.rank(), "expert/guests"));
  }
  const int first_row = groups.routes.rows_of(0).front();
  const int last_row = groups.routes.rows_of(groups.routes.num_stages() - 1).front();
  if (first_row != last_row && embeds_at_end(model_.config())) {
    embedding_rows_ = {first_row, last_row};
    embedding_group_.emplace(world.split(groups.grid.pipeline_group(world.rank()), world.rank(), "pipeline/embedding"));
  }
}

GradientReduction::StageGroups GradientReduction::make_groups(const ProcessGroups& groups, int stage) {
  const Communicator& world = groups.world;
  const int color = groups.routes.rows_of(stage).front();
  const int expert_color = color * groups.grid.expert + groups.expert_rank();
  return {{world.split(color, world.rank(), "data")}, {world.split(expert_color, world.rank(), "expert data")}};
}

// Arrays of a device are summed by the transport.
void GradientReduction::make_queue(Group& group, DType wire) const {
  if (lanes_.transport_follows() || !lanes_.kernels().memory().is_on_host()) return;
  if (group.ranks.size() > 1) group.queue.emplace(group.ranks, wire);
}

GradientReduction::~GradientReduction() {
  for (const Started& sum : started_) job_.poller().unwatch(sum.request);
  for (const Request& request : values_) job_.poller().unwatch(request);
}

size_t GradientReduction::local_index(int stage) const {
  const auto found =
      std::ranges::find_if(model_.stages(), [&](const auto& here) { return here->place().index == stage; });
  CADRE_ASSERT(found != model_.stages().end());
  return static_cast<size_t>(found - model_.stages().begin());
}

void GradientReduction::begin(int stage, int bucket) {
  if (!gradient_shards_.on()) return;
  wait_for_room();
  gradient_shards_.begin(first_bucket_[local_index(stage)] + bucket);
}

void GradientReduction::drop(int stage, int bucket) {
  if (!gradient_shards_.on()) return;
  gradient_shards_.give_back(gradient_shards_.end(first_bucket_[local_index(stage)] + bucket));
}

// Nothing reads the memory of a pass when no operation keeps it. Its requests may last longer: a sum with the other end of the
// pipeline is of the shard.
void GradientReduction::let_go_of_dropped() {
  constexpr long kNotKept = 2;  // the buffer and the question
  while (!dropping_.empty() && dropping_.front().memory.share().use_count() == kNotKept) {
    gradient_shards_.give_back(std::move(dropping_.front().memory));
    dropping_.pop_front();
  }
}

// A rank that waits here moves on what others may wait for before they start the same sum.
void GradientReduction::wait_for_room() {
  let_go_of_dropped();
  if (dropping_.size() <= GradientShards::kSumsUnderWay) return;
  const Position at = {.step = lanes_.lane().position.step, .phase = "gradient reduction"};
  const TraceActivity activity(job_.tracer(), TraceKind::wait, at);
  const Deadline deadline(&job_, lanes_.deadline_seconds());
  while (dropping_.size() > GradientShards::kSumsUnderWay) {
    job_.poller().test_all();
    const Dropping& oldest = dropping_.front();
    for (size_t i = oldest.first; i < oldest.last; ++i) static_cast<void>(started_[i].request.test());
    deadline.check(started_[oldest.first].request, at);
    std::this_thread::yield();
    let_go_of_dropped();
  }
}

void GradientReduction::start(int stage, int bucket, Pass pass) {
  const size_t index = local_index(stage);
  const int stored = first_bucket_[index] + bucket;
  store_.complete_grads(stored);
  Buffer added = gradient_shards_.on() ? gradient_shards_.end(stored) : Buffer();
  // Sums of holders are added by the host; so is all else where the transport does not follow the device.
  if (!lanes_.transport_follows() || embedding_group_ || replica_group_) lanes_.kernels().synchronize();
  Stage& reduced = *model_.stages()[index];
  Position at = {.step = lanes_.lane().position.step, .phase = reduction_phase(reduced, bucket)};
  if (reduced.is_block(bucket)) at.layer = reduced.layers().first + bucket - 1;
  Tracer& tracer = job_.tracer();
  const TraceActivity activity(tracer, TraceKind::compute, at);
  const size_t first_sum = started_.size();
  const auto start_of = [&](Placement placement) {
    Group& group = stages_[index].of(placement);
    std::vector<Request> sums;
    if (pass == Pass::last) sums = start_sum(group, placement, stored);
    if (!added.empty()) std::ranges::move(start_dropped_sum(group, placement, stored, added), std::back_inserter(sums));
    return sums;
  };
  std::vector<Request> started = start_of(Placement::shared);
  if (pass == Pass::one_of_more) {
    at.phase = "expert gradient reduction";
    tracer.switch_to(at);
    keep(std::move(started), stored, Placement::shared);
    keep(start_of(Placement::expert), stored, Placement::expert);
    if (!added.empty()) dropping_.push_back({std::move(added), first_sum, started_.size()});
    return;
  }
  if (std::vector<HeldValues> embedding = embedding_grads(reduced, stored); !embedding.empty()) {
    std::vector<Request> summed = std::exchange(started, {});
    started.push_back(sum_over_holders(*embedding_group_, std::move(embedding), /*tag=*/0, std::move(summed)));
  }
  at.phase = "expert gradient reduction";
  tracer.switch_to(at);
  std::vector<Request> experts = guest_group_ ? start_guests(index, bucket) : start_of(Placement::expert);
  if (std::vector<HeldValues> replicated = replicated_grads(stored); !replicated.empty()) {
    std::vector<Request> summed = std::exchange(experts, {});
    experts.push_back(sum_over_holders(*replica_group_, std::move(replicated), stored, std::move(summed)));
  }
  keep(std::move(started), stored, Placement::shared);
  keep(std::move(experts), stored, Placement::expert);
  if (!added.empty()) dropping_.push_back({std::move(added), first_sum, started_.size()});
  begun_[static_cast<size_t>(stored)] = true;
}

// Of a pass, of the gradients that it added to in memory of its own.
std::vector<Request> GradientReduction::start_dropped_sum(Group& group, Placement placement, int stored_bucket,
                                                          Buffer& added) {
  const std::span<float> values = gradient_shards_.values_of(added, placement, stored_bucket);
  std::vector<Request> started;
  if (values.empty()) return started;
  CADRE_ASSERT(group.queue);
  RankSlices slices = slices_of(placement, stored_bucket, group.ranks.size());
  const std::span<float> all = values.first(static_cast<size_t>(slices.back()));
  SumSink sink = gradient_shards_.sink_of(placement, stored_bucket);
  if (scatters_well(slices, static_cast<int64_t>(all.size()))) {
    started.push_back(group.queue->reduce_scatter(all, added.share(), std::move(slices), std::move(sink)));
  } else {
    started.push_back(group.queue->all_reduce(all, added.share(), std::move(sink)));
  }
  return started;
}

void GradientReduction::keep(std::vector<Request> sums, int stored_bucket, Placement placement) {
  for (Request& request : sums) {
    started_.push_back({std::move(request), stored_bucket, placement});
    job_.poller().watch(started_.back().request, Poller::Kind::other);
  }
}

void GradientReduction::begin_step() {
  begun_.assign(begun_.size(), false);
  gradient_shards_.forget();
}

bool GradientReduction::has_expert_sums(int stage, int bucket) const {
  const size_t index = local_index(stage);
  const int stored = first_bucket_[index] + bucket;
  const bool waits = std::ranges::count(waiting_, std::pair(index, bucket)) > 0;
  return begun_[static_cast<size_t>(stored)] && !waits && std::ranges::none_of(started_, [&](const Started& sum) {
           return sum.bucket == stored && sum.placement == Placement::expert && !sum.request.done();
         });
}

// What guests computed for the experts of the bucket, to their owners. Sums over the ranks that hold the same experts begin when
// these are complete.
std::vector<Request> GradientReduction::start_guests(size_t index, int bucket) {
  Stage& stage = *model_.stages()[index];
  std::vector<OwnedValues> all;
  for (const int layer : moe_layers_of(stage.config())) {
    if (!stage.has(layer) || stage.bucket_of(layer) != bucket) continue;
    std::ranges::move(stage.block(layer).moe().take_shared_grads(), std::back_inserter(all));
  }
  if (stages_[index].expert.ranks.size() > 1) waiting_.emplace_back(index, bucket);
  std::vector<Request> sums;
  if (!all.empty()) sums.push_back(sum_at_owners(*guest_group_, std::move(all), first_bucket_[index] + bucket));
  return sums;
}

bool GradientReduction::sums_experts(int stage) const {
  return experts_early_ || replica_group_.has_value() || guest_group_.has_value() ||
         stages_[local_index(stage)].expert.ranks.size() > 1;
}

std::vector<Request> GradientReduction::start_sum(Group& group, Placement placement, int stored_bucket) {
  std::vector<Request> started;
  if (group.ranks.size() == 1) return started;
  const std::span<float> values = elements_of(store_.grads_of(placement, stored_bucket));
  if (gradient_shards_.on()) {  // these are the gradients that all keep
    started.push_back(group.queue->all_reduce(values, store_.grad_owner()));
    return started;
  }
  if (group.queue) {
    const RankSlices slices = slices_of(placement, stored_bucket, group.ranks.size());
    const bool scatters = shards_.sharded() && scatters_well(slices, static_cast<int64_t>(values.size()));
    const size_t scattered = scatters ? static_cast<size_t>(slices.back()) : 0;
    if (scattered > 0)
      started.push_back(group.queue->reduce_scatter(values.first(scattered), store_.grad_owner(), slices));
    started.push_back(group.queue->all_reduce(values.subspan(scattered), store_.grad_owner()));
    return started;
  }
  for (size_t first = 0; first < values.size(); first += kReductionElements) {
    started.push_back(group.ranks.all_reduce(values.subspan(first, std::min(kReductionElements, values.size() - first)),
                                             store_.grad_owner(), ReduceOp::sum));
  }
  return started;
}

// What each rank of the group owns of a bucket: the store has it in this order, and behind it what all keep.
RankSlices GradientReduction::slices_of(Placement placement, int stored_bucket, int num_ranks) const {
  RankSlices slices(static_cast<size_t>(num_ranks) + 1);
  const auto* const base = store_.values_of(placement, stored_bucket).data<float>();
  for (const Parameter* parameter : store_.parameters_of(stored_bucket)) {
    const std::optional<int> owner = shards_.owner(*parameter);
    if (parameter->placement != placement || !owner) continue;
    int64_t& end = slices[static_cast<size_t>(*owner) + 1];
    end = std::max(end, parameter->value.data<float>() - base + parameter->value.numel());
  }
  for (size_t r = 1; r < slices.size(); ++r) slices[r] = std::max(slices[r], slices[r - 1]);
  return slices;
}

void GradientReduction::mark_values_changed() {
  if (!shards_.sharded()) return;
  values_changed_ = true;
  for (Parameter* parameter : store_.parameters()) {
    if (!parameter->frozen && !shards_.keeps(*parameter)) ++parameter->version;
  }
}

void GradientReduction::start_values() {
  if (!std::exchange(values_changed_, false)) return;
  lanes_.kernels().synchronize();  // the host reads and writes values
  for (size_t index = 0; index < stages_.size(); ++index) {
    for (int bucket = 0; bucket < model_.stages()[index]->num_buckets(); ++bucket) {
      Request& all = values_[static_cast<size_t>(first_bucket_[index] + bucket)];
      all = all_of(start_values(index, bucket));
      job_.poller().watch(all, Poller::Kind::other);
    }
  }
}

std::vector<Request> GradientReduction::start_values(size_t index, int bucket) {
  const Stage& stage = *model_.stages()[index];
  const int stored = first_bucket_[index] + bucket;
  Position at = {.step = lanes_.lane().position.step};
  if (stage.is_block(bucket)) at.layer = stage.layers().first + bucket - 1;
  std::vector<Request> started;
  for (const Placement placement : {Placement::shared, Placement::expert}) {
    at.phase = gather_phase(stage, bucket, placement);
    const TraceActivity activity(job_.tracer(), TraceKind::compute, at);
    std::ranges::move(start_gather(stages_[index].of(placement), placement, stored), std::back_inserter(started));
  }
  return started;
}

std::vector<Request> GradientReduction::start_gather(Group& group, Placement placement, int stored_bucket) {
  std::vector<Request> started;
  if (group.ranks.size() == 1) return started;
  const std::span<float> values = elements_of(store_.values_of(placement, stored_bucket));
  const RankSlices slices = slices_of(placement, stored_bucket, group.ranks.size());
  if (group.queue) {
    started.push_back(group.queue->all_gather(values, store_.value_owner(placement), slices));
    return started;
  }
  for (size_t r = 0; r + 1 < slices.size(); ++r) {
    const auto slice = values.subspan(static_cast<size_t>(slices[r]), static_cast<size_t>(slices[r + 1] - slices[r]));
    if (slice.empty()) continue;
    started.push_back(group.ranks.transport().broadcast(std::as_writable_bytes(slice), static_cast<int>(r)));
    started.back().keep(store_.value_owner(placement));
  }
  return started;
}

void GradientReduction::complete_values() {
  start_values();
  lanes_.lane().enter("parameter gather");
  for (Request& request : values_) {
    lanes_.await(request);
    job_.poller().unwatch(request);
  }
}

bool GradientReduction::has_values() const {
  return !values_changed_ && std::ranges::all_of(values_, [](const Request& request) { return request.done(); });
}

Request& GradientReduction::values_of(int stage, int bucket) {
  return values_[static_cast<size_t>(first_bucket_[local_index(stage)] + bucket)];
}

// By name, as on every rank: where they lie depends on what has moved.
std::vector<HeldValues> GradientReduction::replicated_grads(int stored_bucket) {
  std::vector<HeldValues> held;
  std::vector<Parameter*> replicated;
  for (Parameter* parameter : store_.parameters_of(stored_bucket)) {
    if (parameter->holders.size() > 1 && parameter->grad.defined()) replicated.push_back(parameter);
  }
  std::ranges::sort(replicated, {}, &Parameter::name);
  for (const Parameter* parameter : replicated) {
    held.push_back({elements_of(parameter->grad), store_.grad_owner(), parameter->holders, &store_.memory()});
  }
  return held;
}

// What the bucket holds of the embedding, where the other end of the pipeline holds it too, on another rank.
std::vector<HeldValues> GradientReduction::embedding_grads(Stage& stage, int stored_bucket) {
  std::vector<HeldValues> held;
  if (!embedding_group_) return held;
  for (Parameter* parameter : store_.parameters_of(stored_bucket)) {
    if (parameter != stage.embedding_table() && parameter != stage.embedding_copy()) continue;
    if (!parameter->grad.defined() || parameter->grad.raw() == nullptr) continue;  // none: the sum is elsewhere
    const bool dropped = gradient_shards_.drops(*parameter);
    held.push_back({elements_of(parameter->grad), dropped ? gradient_shards_.shard_owner() : store_.grad_owner(),
                    embedding_rows_, &store_.memory()});
  }
  return held;
}

// Where both are here.
void GradientReduction::add_embedding_copy() {
  const Parameter* const table = model_.stages().front()->embedding_table();
  const Parameter* const copy = model_.stages().back()->embedding_copy();
  if (table == nullptr || copy == nullptr || !table->grad.defined()) return;
  if (table->grad.raw() == nullptr || copy->grad.raw() == nullptr) return;  // the sums are elsewhere
  lanes_.kernels().add(table->grad, copy->grad, table->grad);
  lanes_.kernels().copy(table->grad, copy->grad);
  lanes_.kernels().synchronize();
}

void GradientReduction::finish() {
  lanes_.lane().position = {.step = lanes_.lane().position.step};
  lanes_.lane().enter("gradient reduction");
  finish_started();
  std::ranges::sort(waiting_);
  for (const auto& [index, bucket] : std::exchange(waiting_, {})) {
    const int stored = first_bucket_[index] + bucket;
    keep(start_sum(stages_[index].expert, Placement::expert, stored), stored, Placement::expert);
  }
  finish_started();
  add_embedding_copy();
}

void GradientReduction::finish_started() {
  for (Started& sum : started_) {
    lanes_.await(sum.request);
    job_.poller().unwatch(sum.request);
  }
  let_go_of_dropped();
  started_.clear();
}

void GradientReduction::sum_over_stage(int stage, std::vector<int64_t>& values) const {
  if (values.empty()) return;
  values = lanes_.await(stages_[local_index(stage)].shared.ranks.all_reduce(std::move(values), ReduceOp::sum));
}

}  // namespace cadre
