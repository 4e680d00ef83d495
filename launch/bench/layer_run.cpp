// SPDX-License-Identifier: Apache-2.0
#include "launch/bench/layer_run.hpp"

#include <algorithm>
#include <numeric>

#include "comm/exchange/choose.hpp"
#include "comm/progress/engine.hpp"
#include "layers/nn/ffn.hpp"

namespace cadre {
namespace {

MoeOptions layer_options(const LayerBenchOptions& options) {
  return {.hidden = options.hidden,
          .expert_width = options.ffn,
          .activation = activation_named(options.activation),
          .gated = options.activation == "silu",
          .router = {.hidden = options.hidden,
                     .num_experts = static_cast<int>(options.experts),
                     .top_k = static_cast<int>(options.top_k),
                     .weights = {},
                     .groups = {}}};
}

// Three times the rows of a balanced step, or with a workload all rows on one rank; several of them at once.
ExchangeSetup exchange_setup(const Communicator& group, const LayerBenchOptions& options, const Kernels& kernels) {
  const auto slots = static_cast<size_t>(options.tokens) * static_cast<size_t>(options.top_k);
  const size_t row_bytes = static_cast<size_t>(options.hidden) * sizeof(float);
  const size_t inner_bytes = static_cast<size_t>(options.ffn) * sizeof(float);
  const size_t times = options.workload == "none" ? 3 : std::max<size_t>(3, static_cast<size_t>(group.size()));
  return {.group = group,
          .topology = discover_topology(group),
          .max_tokens = options.tokens,
          .top_k = static_cast<int>(options.top_k),
          .max_row_bytes = row_bytes,
          .memory_bytes = times * slots * (8 * row_bytes + 6 * inner_bytes),
          .device_codec = kernels.device_codec(),
          .transport_follows = group.transport().follow(kernels.queue())};
}

std::unique_ptr<Exchange> exchange_of(const Communicator& group, const LayerBenchOptions& options,
                                      const Kernels& kernels) {
  const ExchangeSetup setup = exchange_setup(group, options, kernels);
  if (options.strategy != "auto") return make_exchange(options.strategy, setup);
  return choose_exchange(setup, {.tokens = options.tokens,
                                 .top_k = static_cast<int>(options.top_k),
                                 .dispatch = {DType::f32, options.hidden},
                                 .combine = {DType::f32, options.hidden}})
      .exchange;
}

}  // namespace

LayerRun::LayerRun(const Communicator& world, const LayerBenchOptions& options)
    : options_(options),
      rig_(world, options.bench, options.precision),
      exchange_(exchange_of(rig_.lane().expert_group(), options, rig_.kernels())),
      layer_("mlp", layer_options(options), ExpertMap::contiguous(static_cast<int>(options.experts), world.size()),
             world.rank()),
      ctx_{{rig_.kernels(), rig_.arena(), DType::f32},
           rig_.lane(),
           *exchange_,
           CombineMode::partial,
           {},
           1.0 / static_cast<double>(options.tokens * world.size())} {
  store_.add_all(layer_);
  if (options.balance == "host") {
    host_experts_ =
        std::make_unique<HostExperts>(world, rig_.lane().expert_group(), expert_value_bytes(store_.parameters()));
  }
  store_.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false, rig_.kernels().memory(),
                  host_experts_ ? &host_experts_->memory() : nullptr);
  if (host_experts_) host_experts_->publish({&layer_}, /*with_grad=*/true);
  store_.initialise(1);
  const TrainConfig defaults;
  optimizer_.emplace(store_, defaults);
  if (options.bench.device == "cpu" && !exchange_->memory().empty()) rig_.arena().lend(exchange_->memory());
  x_ = rig_.inputs().take("x", DType::f32, {options.tokens, options.hidden});
  dy_ = rig_.inputs().take("dy", DType::f32, {options.tokens, options.hidden});
}

void LayerRun::draw() {
  rig_.draw(x_);
  rig_.draw(dy_);
}

void LayerRun::route(Workload workload, int64_t iteration) {
  std::vector<int32_t> ids = draw_routing(workload,
                                          {.tokens = options_.tokens,
                                           .top_k = static_cast<int>(options_.top_k),
                                           .rank = rig_.lane().expert_group().rank(),
                                           .iteration = iteration},
                                          layer_.expert_map());
  num_tokens_ = static_cast<int64_t>(ids.size()) / options_.top_k;
  replay_.ids[rig_.lane().position.layer] = std::move(ids);
  ctx_.tokens.replay = &replay_;
}

void LayerRun::step() {
  rig_.arena().release({});
  store_.forget_grads();
  layer_.forget_shared_grads();
  Task<void> task = forward_and_backward();
  Engine().run(rig_.lane(), task);
  store_.complete_grads();
  if (host_experts_) {
    Request sum = sum_at_owners(rig_.lane().expert_group(), layer_.take_shared_grads(), /*tag=*/0);
    wait(sum);
  }
  optimizer_->update(rig_.kernels(), 1e-3, 1.0, ++num_steps_);
}

void LayerRun::floor() {
  const Kernels& kernels = rig_.kernels();
  for (const auto& [weight, rows] : products()) {
    ArenaScope scope(rig_.arena());
    const Tensor x = rig_.arena().take("floor", DType::f32, {rows, weight->value.dim(1)});
    const Tensor y = rig_.arena().take("floor", DType::f32, {rows, weight->value.dim(0)});
    kernels.linear(x, *weight, y);
    kernels.linear_input_grad(y, *weight, x, Accumulate::no);
    kernels.linear_weight_grad(x, y, weight->grad, Accumulate::no);
  }
}

double LayerRun::gflop() {
  double flops = 0.0;
  for (const auto& [weight, rows] : products()) {
    flops += 6.0 * static_cast<double>(rows) * static_cast<double>(weight->value.numel());
  }
  return flops * 1e-9;
}

Task<void> LayerRun::forward_and_backward() {
  saved_ = {};
  Task<Tensor> forward = layer_.forward(ctx_, x_.rows(0, num_tokens_), saved_);
  co_await forward;
  Task<Tensor> backward = layer_.backward(ctx_, saved_, dy_.rows(0, num_tokens_));
  co_await backward;
}

std::vector<std::pair<const Parameter*, int64_t>> LayerRun::products() {
  std::vector<std::pair<const Parameter*, int64_t>> met;
  for (const Parameter* weight : store_.parameters()) {
    if (weight->placement != Placement::expert) met.emplace_back(weight, num_tokens_);
  }
  const Experts::Saved& experts = saved_.experts;
  for (size_t e = 0; e + 1 < experts.offsets.size(); ++e) {
    const auto add = [&, rows = experts.offsets[e + 1] - experts.offsets[e]](const Parameter& weight) {
      met.emplace_back(&weight, rows);
    };
    if (experts.chosen.empty()) {
      layer_.each_parameter_of_expert(static_cast<int>(e), add);
    } else {
      experts.chosen[e]->each_parameter(add);
    }
  }
  return met;
}

double busiest_over_mean(const Communicator& world, const std::vector<int64_t>& rows) {
  const auto most = wait(world.all_reduce(rows, ReduceOp::max));
  const auto all = wait(world.all_reduce(rows, ReduceOp::sum));
  const auto sum = [](const std::vector<int64_t>& of) { return std::accumulate(of.begin(), of.end(), int64_t{0}); };
  return static_cast<double>(sum(most) * world.size()) / static_cast<double>(std::max<int64_t>(1, sum(all)));
}

}  // namespace cadre
