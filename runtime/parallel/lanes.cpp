// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/lanes.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

Lane make_lane(const ProcessGroups& groups, int id) {
  const Communicator& world = groups.world;
  return {id, world.split(groups.grid.expert_group(world.rank()), world.rank(), fmt::format("expert/lane {}", id)),
          world.split(groups.grid.data_group(world.rank()), world.rank(), fmt::format("data/lane {}", id))};
}

// Address space for twice the plan leaves room for steps whose routing is more uneven than it assumes.
constexpr size_t kActivationReserve = 2;
// Where nothing is known of the activations, as at inference.
constexpr size_t kSmallActivations = size_t{32} << 20;

// The value of that name; throws where `text` is none of them.
template <class T>
T value_named(const char* key, const std::string& text, const std::vector<Name<T>>& names) {
  T value{};
  assign_text(named(key, value, names, "a run file has these names"), text, "");
  return value;
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

WireFormats wire_formats(const ExchangeConfig& config) {
  return {.dispatch = wire_named(config.dispatch_format), .combine = wire_named(config.combine_format)};
}

DType gradient_wire(const ExchangeConfig& config) {
  return value_named<DType>("exchange.gradients", config.gradients, {{"fp32", DType::f32}, {"bf16", DType::bf16}});
}

Precision precision_of(const ComputeConfig& config) {
  const bool is_ue8m0 = config.fp8_scale == "ue8m0";
  return value_named<Precision>("compute.precision", config.precision,
                                {{"fp32", Precision::fp32},
                                 {"bf16", Precision::bf16},
                                 {"fp8", is_ue8m0 ? Precision::fp8_ue8m0 : Precision::fp8}});
}

WeightFormat weight_format(const ComputeConfig& config) {
  return value_named<WeightFormat>("compute.weights", config.weights,
                                   {{"fp32", WeightFormat::fp32},
                                    {"bf16", WeightFormat::bf16},
                                    {"int8", WeightFormat::int8},
                                    {"fp8", WeightFormat::fp8}});
}

CombineMode combine_mode(const ExchangeConfig& config) {
  return value_named<CombineMode>("exchange.combine", config.combine,
                                  {{"partial", CombineMode::partial}, {"slot_order", CombineMode::slot_order}});
}

Lanes::Lanes(const ProcessGroups& groups, Kernels& kernels, const WorkerOptions& options)
    : kernels_(kernels),
      transport_follows_(groups.world.transport().follow(kernels.queue())),
      engine_(options.exchange.deadline_s),
      combine_(combine_mode(options.exchange)),
      recompute_(options.recompute),
      wire_(wire_formats(options.exchange)),
      pools_(std::make_shared<ExchangePools>(kernels.device_codec())) {
  groups.world.job().poller().set_policy({.polls_per_exchange = options.exchange.polls});
  for (int id = 0; id < options.num_lanes; ++id) {
    spaces_.push_back(std::make_unique<Space>(make_lane(groups, id), nullptr,
                                              Arena(Arena::Mode::real, /*poison=*/false, kernels_.memory())));
  }
  make_exchanges(groups, options);
  make_arenas(options);
}

// A group may find less memory on its host than another, so all ranks of the job agree before they go on.
void Lanes::make_exchanges(const ProcessGroups& groups, const WorkerOptions& options) {
  const std::optional<Failure> failure =
      attempt_together(groups.world, engine_.deadline_seconds(), "making exchanges", [&] {
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

ExchangeSetup Lanes::exchange_setup(const Space& space, const WorkerOptions& options) const {
  const Communicator& group = space.lane.expert_group();
  const RowCodec* device_codec = kernels_.device_codec();
  const size_t activations = options.activation_bytes == 0 ? kSmallActivations : options.activation_bytes;
  return {.group = group,
          .topology = discover_topology(group),
          .max_tokens = std::max<int64_t>(options.max_tokens, 1),
          .top_k = static_cast<int>(slots_per_token(options.model)),
          .max_row_bytes = static_cast<size_t>(widest_row(options.model)) * sizeof(float),
          // Activations of a device lie elsewhere, and their rows come as messages.
          .memory_bytes = device_codec == nullptr ? kActivationReserve * activations : 0,
          .device_codec = device_codec,
          .transport_follows = transport_follows_,
          .plugin = options.model.router.select.plugin,
          .pools = pools_};
}

void Lanes::make_exchange_of(Space& space, const WorkerOptions& options) {
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

void Lanes::make_arenas(const WorkerOptions& options) {
  const bool on_host = &kernels_.memory() == &host_memory();
  // Memory of a device is taken whether it is written or not.
  const size_t reserve = on_host ? kActivationReserve : 1;
  bool lent = false;
  int lanes_left = options.num_lanes_here;
  for (auto& space : spaces_) {
    if (on_host && !space->exchange->memory().empty()) {
      space->arena.lend(space->exchange->memory());
      lent = true;
    } else if (options.activation_bytes > 0 && lanes_left-- > 0) {
      space->arena.reserve(reserve * options.activation_bytes);
    }
  }
  if (lent) return;  // rows are read where they are computed, so each lane computes in the memory of its exchange
  for (int i = 0; i < options.num_works; ++i) {
    works_.push_back(std::make_unique<Arena>(Arena::Mode::real, /*poison=*/false, kernels_.memory()));
    works_.back()->reserve(reserve * options.work_bytes);
    free_works_.push_back(works_.back().get());
  }
}

size_t Lanes::peak_activation_bytes() const {
  size_t bytes = 0;
  for (const auto& space : spaces_) bytes += space->arena.peak_bytes();
  for (const auto& work : works_) bytes += work->peak_bytes();
  return bytes;
}

Lanes::WorkLoan::WorkLoan(Lanes& lanes, int index) : lanes_(lanes), arena_(lanes.arena(index)), work_(nullptr) {
  if (lanes_.works_.empty()) return;
  CADRE_ASSERT(!lanes_.free_works_.empty());
  work_ = lanes_.free_works_.back();
  lanes_.free_works_.pop_back();
  arena_.set_work(work_);
}

Lanes::WorkLoan::~WorkLoan() {
  if (work_ == nullptr) return;
  arena_.set_work(nullptr);
  lanes_.free_works_.push_back(work_);
}

LaneContext Lanes::context(Space& own) const {
  return {{kernels_, own.arena, DType::f32, recompute_}, own.lane, *own.exchange, combine_, wire_};
}

LaneContext Lanes::training_context(double token_scale, DeferredQueue& deferred, int index) {
  LaneContext ctx = context(space(index));
  ctx.token_scale = token_scale;
  ctx.deferred = &deferred;
  return ctx;
}

LaneContext Lanes::inference_context() {
  LaneContext ctx = context(space(0));
  ctx.training = false;
  return ctx;
}

}  // namespace cadre
