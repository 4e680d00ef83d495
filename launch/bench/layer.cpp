// SPDX-License-Identifier: Apache-2.0
// `cadre bench layer`: one mixture-of-experts layer, forward, backward and optimiser step, beside the time of exactly
// the same products alone, measured in turn in the same process on fresh random tokens.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "comm/progress/engine.hpp"
#include "launch/bench/bench.hpp"
#include "launch/bench/workloads.hpp"
#include "layers/moe/moe_layer.hpp"
#include "layers/nn/ffn.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/host_experts.hpp"

namespace cadre {
namespace {

struct BenchLayerArguments {
  int64_t tokens = 2048;  // a rank
  int64_t hidden = 512;
  int64_t ffn = 1024;
  int64_t experts = 16;
  int64_t top_k = 4;
  std::string activation = "silu";
  std::string precision = "fp32";
  std::string strategy = "auto";
  std::string balance = "none";
  std::string workload = "none";  // W0 ... W7, or the router of the layer chooses
  BenchOptions bench;
};

MoeOptions layer_options(const BenchLayerArguments& options) {
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
ExchangeSetup exchange_setup(const Communicator& group, const BenchLayerArguments& options, const Kernels& kernels) {
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

std::unique_ptr<Exchange> exchange_of(const Communicator& group, const BenchLayerArguments& options,
                                      const Kernels& kernels) {
  const ExchangeSetup setup = exchange_setup(group, options, kernels);
  if (options.strategy != "auto") return make_exchange(options.strategy, setup);
  return choose_exchange(setup, {.tokens = options.tokens,
                                 .top_k = static_cast<int>(options.top_k),
                                 .dispatch = {DType::f32, options.hidden},
                                 .combine = {DType::f32, options.hidden}})
      .exchange;
}

class LayerBench {
 public:
  LayerBench(const Communicator& world, const BenchLayerArguments& options)
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

  // step, floor
  std::vector<TimesOverRanks> measure() {
    // Other tokens for every iteration, so that nothing is learned or cached.
    const auto draw = [this](int64_t iteration) {
      rig_.draw(x_);
      rig_.draw(dy_);
      if (options_.workload != "none") route(iteration);
    };
    return rig_.measure(draw, {[this] { step(); }, [this] { floor(); }});
  }

  // Rows of the busiest rank / mean, over the steps. Collective.
  double busiest_over_mean() {
    const Communicator& world = rig_.lane().expert_group();
    const auto most = wait(world.all_reduce(rows_, ReduceOp::max));
    const auto all = wait(world.all_reduce(rows_, ReduceOp::sum));
    const auto sum = [](const std::vector<int64_t>& rows) {
      return std::accumulate(rows.begin(), rows.end(), int64_t{0});
    };
    return static_cast<double>(sum(most) * world.size()) / static_cast<double>(std::max<int64_t>(1, sum(all)));
  }

  std::string_view strategy() const { return exchange_->name(); }

  double gflop() {
    double flops = 0.0;
    for (const auto& [weight, rows] : products()) {
      flops += 6.0 * static_cast<double>(rows) * static_cast<double>(weight->value.numel());
    }
    return flops * 1e-9;
  }

 private:
  // The choices of the workload in place of those of the router, which computes as ever. It may leave a rank fewer tokens.
  void route(int64_t iteration) {
    const auto index = options_.workload.back() - '0';
    std::vector<int32_t> ids = draw_routing(static_cast<Workload>(index),
                                            {.tokens = options_.tokens,
                                             .top_k = static_cast<int>(options_.top_k),
                                             .rank = rig_.lane().expert_group().rank(),
                                             .iteration = std::max<int64_t>(0, iteration)},
                                            layer_.expert_map());
    num_tokens_ = static_cast<int64_t>(ids.size()) / options_.top_k;
    replay_.ids[rig_.lane().position.layer] = std::move(ids);
    ctx_.tokens.replay = &replay_;
  }

  void step() {
    store_.forget_grads();
    layer_.forget_shared_grads();
    Task<void> task = forward_and_backward();
    Engine().run(rig_.lane(), task);
    rows_.push_back(saved_.dispatch->num_places());
    store_.complete_grads();
    if (host_experts_) {
      Request sum = sum_at_owners(rig_.lane().expert_group(), layer_.take_shared_grads(), /*tag=*/0);
      wait(sum);
    }
    optimizer_->update(rig_.kernels(), 1e-3, 1.0, ++num_steps_);
  }

  // The products of the last step: per weight with its number of rows, forward, input gradient, weight gradient.
  void floor() {
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

  Task<void> forward_and_backward() {
    saved_ = {};
    Task<Tensor> forward = layer_.forward(ctx_, x_.rows(0, num_tokens_), saved_);
    co_await forward;
    Task<Tensor> backward = layer_.backward(ctx_, saved_, dy_.rows(0, num_tokens_));
    co_await backward;
  }

  // The weights that rows of the last step met on this rank, and how many: those of an expert, or all tokens for the router.
  std::vector<std::pair<const Parameter*, int64_t>> products() {
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

  BenchLayerArguments options_;
  BenchRig rig_;
  std::unique_ptr<Exchange> exchange_;
  MoeLayer layer_;
  std::unique_ptr<HostExperts> host_experts_;  // with --balance host; has memory of the store
  ParameterStore store_;
  std::optional<Optimizer> optimizer_;
  LaneContext ctx_;
  MoeLayer::Saved saved_;
  Tensor x_, dy_;
  int64_t num_tokens_ = options_.tokens;  // of this rank in the last step
  Replay replay_;
  std::vector<int64_t> rows_;  // that came to this rank in each step
  int64_t num_steps_ = 0;
};

nlohmann::json to_json(const Summary& summary) {
  return {{"min", summary.min}, {"p50", summary.p50}, {"p95", summary.p95}};
}

void bench_layer(const Communicator& world, const BenchLayerArguments& options) {
  LayerBench bench(world, options);
  const std::vector<TimesOverRanks> times = bench.measure();
  const TimesOverRanks& step = times[0];
  const TimesOverRanks& floor = times[1];
  const double busiest = bench.busiest_over_mean();
  if (world.rank() != 0) return;

  const double ratio = step.slowest.p50 / floor.slowest.p50;
  fmt::print("layer {} ranks, {} tokens a rank, hidden {}, ffn {}, {} experts, top-{}, {}, exchange {}, balance {}\n",
             world.size(), options.tokens, options.hidden, options.ffn, options.experts, options.top_k,
             options.precision, bench.strategy(), options.balance);
  fmt::print("  step        min {:8.2f}  p50 {:8.2f}  p95 {:8.2f} ms   worst rank {}\n", step.slowest.min,
             step.slowest.p50, step.slowest.p95, step.worst_rank);
  fmt::print("  gemm floor  min {:8.2f}  p50 {:8.2f}  p95 {:8.2f} ms   {:.1f} GFLOP, {:.0f} GFLOP/s a rank\n",
             floor.slowest.min, floor.slowest.p50, floor.slowest.p95, bench.gflop(),
             bench.gflop() / (floor.slowest.p50 * 1e-3));
  fmt::print("  ratio to floor {:.3f}; rows of the busiest rank / mean {:.3f}\n", ratio, busiest);
  if (options.bench.json.empty()) return;

  nlohmann::json json = {
      {"bench", "layer"},
      {"device", options.bench.device},
      {"ranks", world.size()},
      {"tokens", options.tokens},
      {"hidden", options.hidden},
      {"ffn", options.ffn},
      {"experts", options.experts},
      {"top_k", options.top_k},
      {"precision", options.precision},
      {"strategy", bench.strategy()},
      {"balance", options.balance},
      {"step_ms", to_json(step.slowest)},
      {"gemm_floor_ms", floor.slowest.p50},
      {"gflop", bench.gflop()},
      {"ratio_to_floor", ratio},
      {"rows_max_over_mean", busiest},
      {"workload", options.workload == "none" ? nlohmann::json() : nlohmann::json(options.workload)}};
  json["step_ms"]["worst_rank"] = step.worst_rank;
  json["step_ms"]["worst_rank_p50"] = step.worst_rank_p50;
  write_json_report(options.bench.json, json);
}

}  // namespace

Command bench_layer_command() {
  const auto options = std::make_shared<BenchLayerArguments>();
  return {
      .name = "layer",
      .summary = "measures forward, backward and update of a mixture-of-experts layer, and its products alone",
      .options = bench_fields(
          {{"tokens", &options->tokens, at_least(1), "tokens of each rank"},
           {"hidden", &options->hidden, at_least(1), "width of a row"},
           {"ffn", &options->ffn, at_least(1), "inner width of an expert"},
           {"activation", &options->activation, one_of({"silu", "gelu", "relu"}), "activation of the experts"},
           {"experts", &options->experts, at_least(1), "routed experts, over all ranks"},
           {"top-k", &options->top_k, at_least(1), "experts of a token"},
           {"precision", &options->precision, one_of({"fp32", "bf16"}), "type of the products"},
           {"strategy", &options->strategy, one_of(strategy_names({"auto"})), "strategy of the exchange"},
           {"balance", &options->balance, one_of({"none", "host"}),
            "host: ranks of a host compute rows of each other's busy experts (exchange.balance)"},
           {"workload", &options->workload, one_of({"none", "W0", "W1", "W2", "W3", "W4", "W5", "W6", "W7"}),
            "routing as in bench exchange: W0 balanced, W1 hot experts, W2 hot rank, W3 hot expert on each rank, W4 "
            "uneven tokens, W5 idle rank, W6 moving hot rank, W7 bursts; none: the router's"}},
          options->bench),
      .run = [options](const Job& job) {
        check_top_k(options->top_k, options->experts);
        on_bench_ranks(job, options->bench, [&](const Communicator& world) { bench_layer(world, *options); });
      }};
}

}  // namespace cadre
