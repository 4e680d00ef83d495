// SPDX-License-Identifier: Apache-2.0
// `cadre bench router`: from rows to experts and their weights, beside the product that makes the logits and beside a copy
// of as many bytes as all behind it must read and write.
#include "layers/router/router.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <vector>

#include "comm/progress/engine.hpp"
#include "launch/bench/bench.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {
namespace {

struct BenchRouterArguments {
  int64_t tokens = 4096;  // a rank
  int64_t hidden = 512;
  int64_t experts = 256;
  int64_t top_k = 8;
  int64_t groups = 8;
  int64_t kept_groups = 4;
  BenchOptions bench;
};

// DeepSeek-V3's router.
RouterOptions router_options(const BenchRouterArguments& options) {
  return {.hidden = options.hidden,
          .num_experts = static_cast<int>(options.experts),
          .top_k = static_cast<int>(options.top_k),
          .score = ScoreFunction::sigmoid,
          .weights = {.scale = 2.5},
          .groups = {static_cast<int>(options.groups), static_cast<int>(options.kept_groups), 2},
          .selection_bias = true};
}

class RouterBench {
 public:
  RouterBench(const Communicator& world, const BenchRouterArguments& options)
      : options_(options),
        rig_(world, options.bench),
        exchange_(make_exchange("flat", {rig_.lane().expert_group(), discover_topology(world)})),
        router_("gate", router_options(options)),
        ctx_{{rig_.kernels(), rig_.arena(), DType::f32}, rig_.lane(), *exchange_} {
    router_.each_parameter([&](Parameter& parameter) { store_.add(parameter); });
    store_.allocate(DType::f32, /*with_grad=*/false, /*dry_run=*/false, rig_.kernels().memory());
    store_.initialise(1);
    x_ = rig_.inputs().take("x", DType::f32, {options.tokens, options.hidden});
    from_ = rig_.inputs().take("copy", DType::f32, {options.tokens, options.experts + options.top_k});
    into_ = rig_.inputs().take("copy", DType::f32, {options.tokens, options.experts + options.top_k});
    rig_.draw(from_);
  }

  // forward, its product alone, copy
  std::vector<TimesOverRanks> measure() {
    return rig_.measure([this](int64_t) { rig_.draw(x_); },
                        {[this] { forward(); }, [this] { multiply(); }, [this] { rig_.kernels().copy(from_, into_); }});
  }
  // Logits are read and scores written, [T,E]; ids and weights are written, [T,K], counted as one read and one write.
  double copied_bytes() const { return 2.0 * static_cast<double>(from_.bytes()); }

 private:
  void forward() {
    Router::Saved saved;
    Task<void> task = router_.forward(ctx_, x_, saved);
    Engine().run(rig_.lane(), task);
  }
  void multiply() {
    const Tensor logits = rig_.arena().take("logits", DType::f32, {options_.tokens, options_.experts});
    rig_.kernels().fp32().linear(x_, *store_.parameters().front(), logits);
  }

  BenchRouterArguments options_;
  BenchRig rig_;
  std::unique_ptr<Exchange> exchange_;
  Router router_;
  ParameterStore store_;
  LaneContext ctx_;
  Tensor x_, from_, into_;
};

void bench_router(const Communicator& world, const BenchRouterArguments& options) {
  RouterBench bench(world, options);
  const std::vector<TimesOverRanks> times = bench.measure();
  if (world.rank() != 0) return;

  const TimesOverRanks& forward = times[0];
  const TimesOverRanks& product = times[1];
  const TimesOverRanks& copy = times[2];
  const double rest_ms = forward.slowest.p50 - product.slowest.p50;
  fmt::print("router {} ranks, {} tokens a rank, hidden {}, {} experts, top-{}, {} of {} groups, {}\n", world.size(),
             options.tokens, options.hidden, options.experts, options.top_k, options.kept_groups, options.groups,
             options.bench.device);
  fmt::print("  forward  p50 {:8.3f}  p95 {:8.3f} ms\n", forward.slowest.p50, forward.slowest.p95);
  fmt::print("  product  p50 {:8.3f} ms, everything after it {:.3f} ms\n", product.slowest.p50, rest_ms);
  fmt::print("  copy of the bytes that it moves  p50 {:8.3f} ms, {:.1f} GB/s: {:.1f} % of its speed\n",
             copy.slowest.p50, bench.copied_bytes() / copy.slowest.p50 * 1e-6, 100.0 * copy.slowest.p50 / rest_ms);
  if (options.bench.json.empty()) return;
  write_json_report(options.bench.json, {{"bench", "router"},
                                         {"device", options.bench.device},
                                         {"ranks", world.size()},
                                         {"tokens", options.tokens},
                                         {"hidden", options.hidden},
                                         {"experts", options.experts},
                                         {"top_k", options.top_k},
                                         {"groups", options.groups},
                                         {"kept_groups", options.kept_groups},
                                         {"forward_ms", forward.slowest.p50},
                                         {"product_ms", product.slowest.p50},
                                         {"copy_ms", copy.slowest.p50},
                                         {"copied_bytes", bench.copied_bytes()},
                                         {"percent_of_copy", 100.0 * copy.slowest.p50 / rest_ms}});
}

}  // namespace

Command bench_router_command() {
  const auto options = std::make_shared<BenchRouterArguments>();
  return {.name = "router",
          .summary = "measures the router, its product alone, and a copy of the bytes that it moves",
          .options =
              bench_fields({{"tokens", &options->tokens, at_least(1), "tokens of each rank"},
                            {"hidden", &options->hidden, at_least(1), "width of a row"},
                            {"experts", &options->experts, at_least(1), "experts over all ranks"},
                            {"top-k", &options->top_k, at_least(1), "experts of a token"},
                            {"groups", &options->groups, at_least(1), "groups of experts"},
                            {"kept-groups", &options->kept_groups, at_least(1), "groups that a token may select from"}},
                           options->bench),
          .run = [options](const Job& job) {
            check_top_k(options->top_k, options->experts);
            CADRE_CHECK(options->kept_groups <= options->groups && options->groups <= options->experts,
                        fmt::format("--kept-groups {} of --groups {} of --experts {}, allowed: no more of one than of "
                                    "the next",
                                    options->kept_groups, options->groups, options->experts));
            on_bench_ranks(job, options->bench, [&](const Communicator& world) { bench_router(world, *options); });
          }};
}

}  // namespace cadre
