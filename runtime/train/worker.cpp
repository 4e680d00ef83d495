// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/worker.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"
#include "layers/model/router_options.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/train/devices.hpp"
#include "runtime/train/expert_placement.hpp"

namespace cadre {
namespace {

Lane make_lane(const Communicator& world, const Grid& grid, int id) {
  return {id, world.split(grid.expert_group(world.rank()), world.rank(), fmt::format("expert/lane {}", id)),
          world.split(grid.data_group(world.rank()), world.rank(), fmt::format("data/lane {}", id))};
}

// Elements of one all_reduce: large enough for bandwidth, small enough for the int that MPI counts are.
constexpr int64_t kReductionElements = int64_t{4} << 20;

// Address space for twice the plan leaves room for steps whose routing is more uneven than it assumes.
constexpr size_t kActivationReserve = 2;
// Where nothing is known of the activations, as at inference.
constexpr size_t kSmallActivations = size_t{32} << 20;

}  // namespace

WireFormats wire_formats(const ExchangeConfig& config) {
  return {.dispatch = wire_named(config.dispatch_format), .combine = wire_named(config.combine_format)};
}

Precision precision_of(const ComputeConfig& config) {
  if (config.precision == "fp8") return config.fp8_scale == "ue8m0" ? Precision::fp8_ue8m0 : Precision::fp8;
  return config.precision == "bf16" ? Precision::bf16 : Precision::fp32;
}

CombineMode combine_mode(const ExchangeConfig& config) {
  return config.combine == "slot_order" ? CombineMode::slot_order : CombineMode::partial;
}

namespace {

ExchangeWorkload workload_of(const WorkerOptions& options) {
  const WireFormats wire = wire_formats(options.exchange);
  return {.tokens = std::max<int64_t>(options.max_tokens, 1),
          .top_k = static_cast<int>(options.model.num_experts_per_tok),
          .dispatch = {DType::f32, options.model.hidden_size, wire.dispatch},
          .combine = {DType::f32, options.model.hidden_size, wire.combine},
          .slot_order = combine_mode(options.exchange) == CombineMode::slot_order};
}

// Those without a layer need names of their own: ranks that hold both reduce them in any order.
const char* reduction_phase(const Stage& stage, int bucket) {
  if (stage.is_block(bucket)) return "gradient reduction";
  return bucket == 0 ? "embedding gradient reduction" : "head gradient reduction";
}

std::span<float> grad_values(const Parameter& parameter) {
  return {parameter.grad.data<float>(), static_cast<size_t>(parameter.grad.numel())};
}

// Before the first group is made.
Communicator with_deadline(Communicator world, double seconds) {
  world.job().set_deadline(seconds);
  return world;
}

}  // namespace

Worker::Worker(Communicator world, const WorkerOptions& options)
    : world_(over_devices(with_deadline(std::move(world), options.exchange.deadline_s), options.compute,
                          options.exchange)),
      routes_(options.routes),
      grid_(Grid::make(world_.size(), static_cast<int>(options.parallel.pipeline),
                       static_cast<int>(options.parallel.expert))),
      pipeline_group_(world_.split(grid_.pipeline_group(world_.rank()), world_.rank(), "pipeline")),
      engine_(options.exchange.deadline_s),
      kernels_(options.make_kernels ? options.make_kernels() : make_kernels(world_, options.compute, options.row_bits)),
      combine_(combine_mode(options.exchange)),
      wire_(wire_formats(options.exchange)),
      maps_(place_experts(options.model, options.parallel, grid_.expert)),
      model_(options.model, routes_.stages_of(row()), maps_, grid_.expert_rank(world_.rank())) {
  poller().set_policy({.polls_per_exchange = options.exchange.polls});
  check_same_maps(world_, maps_, options.model, options.parallel.placement);
  transport_follows_ = world_.transport().follow(kernels_->queue());
  for (int lane = 0; lane < options.num_lanes; ++lane) {
    spaces_.push_back(std::make_unique<LaneSpace>(make_lane(world_, grid_, lane), nullptr,
                                                  Arena(Arena::Mode::real, /*poison=*/false, kernels_->memory())));
  }
  make_exchanges(options);
  make_arenas(options);
  make_reduction_groups();
  fill_store(options.with_grad);
  if (options.exchange.progress == "thread") start_progress(options);
}

void Worker::start_progress(const WorkerOptions& options) {
  const SpareCpu spare = find_spare_cpu(world_, static_cast<int>(options.compute.threads));
  if (spare.cpu) {
    progress_thread_ = std::make_unique<ProgressThread>(world_.transport(), *spare.cpu);
  } else {
    progress_note_ = fmt::format("exchange.progress = thread does not run: {}", spare.why_not);
  }
}

// A group may find less memory on its host than another, so all ranks of the job agree before they go on.
void Worker::make_exchanges(const WorkerOptions& options) {
  const std::optional<Failure> failure = attempt_together(world_, engine_.deadline_seconds(), "making exchanges", [&] {
    for (auto& space : spaces_) make_exchange_of(*space, options);
  });
  if (!failure) return;
  if (options.exchange.strategy != "auto" || failure->kind != ErrorKind::environment) {
    throw Error(failure->kind, failure->text, failure->hint);
  }
  for (auto& space : spaces_) space->exchange = nullptr;
  for (auto& space : spaces_) space->exchange = make_exchange("flat", exchange_setup(*space, options));
  exchange_reason_ = fmt::format("flat: {}", failure->text);
}

ExchangeSetup Worker::exchange_setup(const LaneSpace& space, const WorkerOptions& options) const {
  const Communicator& group = space.lane.expert_group();
  const RowCodec* device_codec = kernels_->device_codec();
  const size_t activations = options.activation_bytes == 0 ? kSmallActivations : options.activation_bytes;
  return {.group = group,
          .topology = discover_topology(group),
          .max_tokens = std::max<int64_t>(options.max_tokens, 1),
          .top_k = static_cast<int>(slots_per_token(options.model)),
          .max_row_bytes = static_cast<size_t>(widest_row(options.model)) * sizeof(float),
          // Activations of a device lie elsewhere, and their rows come as messages.
          .memory_bytes = device_codec == nullptr ? kActivationReserve * activations : 0,
          .device_codec = device_codec,
          .transport_follows = transport_follows_};
}

void Worker::make_exchange_of(LaneSpace& space, const WorkerOptions& options) {
  const ExchangeSetup setup = exchange_setup(space, options);
  if (&space != spaces_.front().get()) {
    space.exchange = make_exchange(spaces_.front()->exchange->name(), setup);
  } else if (options.exchange.strategy == "auto") {
    Choice choice = choose_exchange(setup, workload_of(options));
    space.exchange = std::move(choice.exchange);
    exchange_reason_ = std::move(choice.reason);
  } else {
    space.exchange = make_exchange(options.exchange.strategy, setup);
    exchange_reason_ = options.exchange.strategy + ": as the configuration says";
  }
}

void Worker::make_arenas(const WorkerOptions& options) {
  const bool on_host = &kernels_->memory() == &host_memory();
  for (auto& space : spaces_) {
    if (on_host && !space->exchange->memory().empty()) {
      space->arena.lend(space->exchange->memory());
    } else if (options.activation_bytes > 0) {
      // Memory of a device is taken whether it is written or not.
      space->arena.reserve((on_host ? kActivationReserve : 1) * options.activation_bytes);
    }
  }
}

// All ranks hold the same number of stages, and those that share one share them all.
void Worker::make_reduction_groups() {
  for (const auto& stage : model_.stages()) {
    const int color = routes_.rows_of(stage->place().index).front();
    const int expert_color = color * grid_.expert + grid_.expert_rank(world_.rank());
    reduction_groups_.push_back(
        {world_.split(color, world_.rank(), "data"), world_.split(expert_color, world_.rank(), "expert data")});
  }
  if (maps_.have_replicas()) {
    replica_group_.emplace(world_.split(grid_.expert_group(world_.rank()), world_.rank(), "expert/replicas"));
  }
  const int first_row = routes_.rows_of(0).front();
  const int last_row = routes_.rows_of(routes_.num_stages() - 1).front();
  if (first_row != last_row && embeds_at_end(model_.config())) {
    embedding_rows_ = {first_row, last_row};
    embedding_group_.emplace(world_.split(grid_.pipeline_group(world_.rank()), world_.rank(), "pipeline/embedding"));
  }
}

bool is_first_holder(const Parameter& parameter, int stage, const PipelineRoutes& routes, const Grid& grid, int rank) {
  const int holders = parameter.placement == Placement::expert ? grid.expert : 1;
  const bool owned =
      !parameter.is_copy && (parameter.holders.empty() || parameter.holders.front() == grid.expert_rank(rank));
  return routes.rows_of(stage).front() == grid.stage(rank) && grid.data_rank(rank) < holders && owned;
}

void Worker::fill_store(bool with_grad) {
  for (const auto& stage : model_.stages()) {
    first_bucket_.push_back(store_.begin_bucket());
    for (int bucket = 0; bucket < stage->num_buckets(); ++bucket) {
      if (bucket > 0) store_.begin_bucket();
      stage->each_parameter(bucket, [&](Parameter& parameter) {
        store_.add(parameter);
        if (cadre::is_first_holder(parameter, stage->place().index, routes_, grid_, world_.rank())) {
          first_held_.push_back(&parameter);
        }
      });
    }
  }
  std::ranges::sort(first_held_);
  store_.allocate(DType::f32, with_grad, /*dry_run=*/false, kernels_->memory());
}

bool Worker::is_first_holder(const Parameter& parameter) const {
  return std::ranges::binary_search(first_held_, &parameter);
}

size_t Worker::local_index(int stage) const {
  const auto found =
      std::ranges::find_if(model_.stages(), [&](const auto& here) { return here->place().index == stage; });
  CADRE_ASSERT(found != model_.stages().end());
  return static_cast<size_t>(found - model_.stages().begin());
}

void Worker::start_gradient_reduction(int stage, int bucket) {
  const size_t index = local_index(stage);
  const int stored = first_bucket_[index] + bucket;
  store_.complete_grads(stored);
  // Sums of holders are added by the host; so is all else where the transport does not follow the device.
  if (!transport_follows_ || embedding_group_ || replica_group_) kernels_->synchronize();
  Stage& reduced = *model_.stages()[index];
  Position at = {.step = lane().position.step, .phase = reduction_phase(reduced, bucket)};
  if (reduced.is_block(bucket)) at.layer = reduced.layers().first + bucket - 1;
  Tracer& tracer = world_.job().tracer();
  const TraceActivity activity(tracer, TraceKind::compute, at);
  std::vector<Request> started = start_sum(reduction_groups_[index].shared, Placement::shared, stored);
  if (std::vector<HeldValues> embedding = embedding_grads(reduced, stored); !embedding.empty()) {
    std::vector<Request> summed = std::exchange(started, {});
    started.push_back(sum_over_holders(*embedding_group_, std::move(embedding), /*tag=*/0, std::move(summed)));
  }
  at.phase = "expert gradient reduction";
  tracer.switch_to(at);
  std::vector<Request> experts = start_sum(reduction_groups_[index].expert, Placement::expert, stored);
  if (std::vector<HeldValues> replicated = replicated_grads(stored); !replicated.empty()) {
    started.push_back(sum_over_holders(*replica_group_, std::move(replicated), stored, std::move(experts)));
  } else {
    std::ranges::move(experts, std::back_inserter(started));
  }
  for (Request& request : started) {
    reductions_.push_back(std::move(request));
    poller().watch(reductions_.back(), Poller::Kind::other);
  }
}

std::vector<Request> Worker::start_sum(const Communicator& group, Placement placement, int stored_bucket) {
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
std::vector<HeldValues> Worker::replicated_grads(int stored_bucket) {
  std::vector<HeldValues> held;
  for (Parameter* parameter : store_.parameters_of(stored_bucket)) {
    if (parameter->holders.size() < 2) continue;
    held.push_back({grad_values(*parameter), store_.grad_owner(), parameter->holders});
  }
  return held;
}

// What the bucket holds of the embedding, where the other end of the pipeline holds it too, on another rank.
std::vector<HeldValues> Worker::embedding_grads(Stage& stage, int stored_bucket) {
  std::vector<HeldValues> held;
  if (!embedding_group_) return held;
  for (Parameter* parameter : store_.parameters_of(stored_bucket)) {
    if (parameter != stage.embedding_table() && parameter != stage.embedding_copy()) continue;
    held.push_back({grad_values(*parameter), store_.grad_owner(), embedding_rows_});
  }
  return held;
}

// Where both are here.
void Worker::add_embedding_copy() {
  const Parameter* const table = model_.stages().front()->embedding_table();
  const Parameter* const copy = model_.stages().back()->embedding_copy();
  if (table == nullptr || copy == nullptr) return;
  kernels_->add(table->grad, copy->grad, table->grad);
  kernels_->synchronize();
  std::memcpy(copy->grad.raw(), table->grad.raw(), table->grad.bytes());
}

void Worker::finish_gradient_reduction() {
  lane().position = {.step = lane().position.step};
  lane().enter("gradient reduction");
  for (Request& request : reductions_) {
    await(request);
    poller().unwatch(request);
  }
  reductions_.clear();
  add_embedding_copy();
}

void Worker::sum_over_stage(int stage, std::vector<int64_t>& values) const {
  if (values.empty()) return;
  values = await(reduction_groups_[local_index(stage)].shared.all_reduce(std::move(values), ReduceOp::sum));
}

uint64_t Worker::gradient_hash() const {
  kernels_->synchronize();
  Digester digester;
  for (const Parameter* parameter : store_.parameters()) {
    if (parameter->grad.defined()) digester.append({parameter->grad.raw(), parameter->grad.bytes()});
  }
  return digester.digest().xxh64;
}

LaneContext Worker::training_context(double token_scale, DeferredQueue& deferred, int lane) {
  LaneSpace& own = space(lane);
  return {{*kernels_, own.arena, DType::f32},
          own.lane,
          *own.exchange,
          combine_,
          wire_,
          token_scale,
          /*training=*/true,
          &deferred};
}

LaneContext Worker::inference_context() {
  LaneSpace& own = space(0);
  return {{*kernels_, own.arena, DType::f32}, own.lane, *own.exchange, combine_, wire_, 1.0, /*training=*/false};
}

}  // namespace cadre
