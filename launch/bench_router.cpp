// SPDX-License-Identifier: Apache-2.0
// `cadre bench router`: from rows to experts and their weights, beside the product that makes the logits and beside a copy
// of as many bytes as all behind it must read and write.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "comm/progress/engine.hpp"
#include "launch/bench.hpp"
#include "launch/job.hpp"
#include "launch/statistics.hpp"
#include "layers/moe/router.hpp"
#include "layers/tensor/parameter_store.hpp"
#include "runtime/train/devices.hpp"

namespace cadre {
namespace {

struct Options {
  int64_t tokens = 4096;  // a rank
  int64_t hidden = 512;
  int64_t experts = 256;
  int64_t top_k = 8;
  int64_t groups = 8;
  int64_t kept_groups = 4;
  std::string device = "cpu";
  int64_t iterations = 20;
  int64_t warmup = 3;
  int64_t threads = 1;
  int64_t ranks = 0;
  std::string json;
};

// DeepSeek-V3's router.
RouterOptions router_options(const Options& options) {
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
  RouterBench(const Communicator& world, const Options& options)
      : options_(options),
        lane_(0, world.duplicate("expert"), world.duplicate("data")),
        kernels_(make_kernels(world, {.device = options.device}, RowBits::independent)),
        exchange_(make_flat_exchange({lane_.expert_group(), discover_topology(world)})),
        router_("gate", router_options(options)),
        ctx_{{*kernels_, arena_, DType::f32}, lane_, *exchange_} {
    router_.each_parameter([&](Parameter& parameter) { store_.add(parameter); });
    store_.allocate(DType::f32, /*with_grad=*/false, /*dry_run=*/false, kernels_->memory());
    store_.initialise(1);
    x_ = inputs_.take("x", DType::f32, {options.tokens, options.hidden});
    rows_ = inputs_.take("rows", DType::f32, {options.tokens, options.experts + options.top_k});
    rows_.fill_zero();
    order_ = inputs_.take("order", DType::i32, {options.tokens});
    std::iota(order_.data<int32_t>(), order_.data<int32_t>() + options.tokens, 0);
  }

  void draw_tokens(int64_t iteration) {
    const Random random(7, "bench", static_cast<uint64_t>(iteration * 4096 + lane_.data_group().rank()));
    for (int64_t i = 0; i < x_.numel(); ++i) {
      x_.data<float>()[i] = static_cast<float>(random.uniform(static_cast<uint64_t>(i)) * 2.0 - 1.0);
    }
  }

  double forward_ms() {
    return timed_ms([this] {
      Router::Saved saved;
      Task<void> task = router_.forward(ctx_, x_, saved);
      Engine().run(lane_, task);
    });
  }
  double product_ms() {
    return timed_ms([this] {
      const Parameter& weight = *store_.parameters().front();
      kernels_->fp32().linear(x_, weight, arena_.take("logits", DType::f32, {options_.tokens, options_.experts}));
    });
  }
  // Logits are read and scores written, [T,E]; ids and weights are written, [T,K], counted as one read and one write.
  double copy_ms() {
    return timed_ms([this] {
      kernels_->gather_rows(rows_, order_, Tensor(), arena_.take("copy", DType::f32, {rows_.dim(0), rows_.dim(1)}));
    });
  }
  double copied_bytes() const { return 2.0 * static_cast<double>(rows_.bytes()); }

 private:
  template <class Work>
  double timed_ms(const Work& work) {
    arena_.release({});
    Request together = lane_.data_group().barrier();
    wait(together);
    const int64_t begin = trace_clock_ns();
    work();
    return static_cast<double>(trace_clock_ns() - begin) * 1e-6;
  }

  Options options_;
  Lane lane_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Exchange> exchange_;
  Router router_;
  ParameterStore store_;
  Arena inputs_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  Arena arena_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  LaneContext ctx_;
  Tensor x_, rows_, order_;
};

void bench_router(const Communicator& world, const Options& options) {
  RouterBench bench(world, options);
  std::vector<double> forwards, products, copies;
  for (int64_t i = 0; i < options.warmup + options.iterations; ++i) {
    bench.draw_tokens(i);
    const double forward = bench.forward_ms();
    const double product = bench.product_ms();
    const double copy = bench.copy_ms();
    if (i < options.warmup) continue;
    forwards.push_back(forward);
    products.push_back(product);
    copies.push_back(copy);
  }
  const TimesOverRanks forward = gather_times(world, forwards);
  const TimesOverRanks product = gather_times(world, products);
  const TimesOverRanks copy = gather_times(world, copies);
  if (world.rank() != 0) return;

  const double rest_ms = forward.slowest.p50 - product.slowest.p50;
  fmt::print("router {} ranks, {} tokens a rank, hidden {}, {} experts, top-{}, {} of {} groups, {}\n", world.size(),
             options.tokens, options.hidden, options.experts, options.top_k, options.kept_groups, options.groups,
             options.device);
  fmt::print("  forward  p50 {:8.3f}  p95 {:8.3f} ms\n", forward.slowest.p50, forward.slowest.p95);
  fmt::print("  product  p50 {:8.3f} ms, all behind it {:.3f} ms\n", product.slowest.p50, rest_ms);
  fmt::print("  copy of what that must move  p50 {:8.3f} ms, {:.1f} GB/s: {:.1f} % of its speed\n", copy.slowest.p50,
             bench.copied_bytes() / copy.slowest.p50 * 1e-6, 100.0 * copy.slowest.p50 / rest_ms);
  if (options.json.empty()) return;
  write_json_report(options.json, {{"bench", "router"},
                                   {"device", options.device},
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
  const auto options = std::make_shared<Options>();
  return {.name = "router",
          .summary = "from rows to experts and weights, beside its product and a copy of the bytes it moves",
          .options = {{"tokens", &options->tokens, at_least(1), "tokens of each rank"},
                      {"hidden", &options->hidden, at_least(1), "width of a row"},
                      {"experts", &options->experts, at_least(1), "over all ranks"},
                      {"top-k", &options->top_k, at_least(1), "experts of a token"},
                      {"groups", &options->groups, at_least(1), "of experts"},
                      {"kept-groups", &options->kept_groups, at_least(1), "that a token may choose from"},
                      device_option(options->device),
                      {"iterations", &options->iterations, at_least(1), "measured, after the warm-up"},
                      {"warmup", &options->warmup, at_least(0), "iterations before them"},
                      {"threads", &options->threads, at_least(1), "BLAS threads a rank"},
                      ranks_option(options->ranks),
                      {"json", &options->json, any(), "file for the report"}},
          .run = [options](const Job& job) {
            check_top_k(options->top_k, options->experts);
            CADRE_CHECK(options->kept_groups <= options->groups && options->groups <= options->experts,
                        fmt::format("--kept-groups {} of --groups {} of --experts {}, allowed: no more of one than of "
                                    "the next",
                                    options->kept_groups, options->groups, options->experts));
            set_kernel_threads(static_cast<int>(options->threads));
            job.on_ranks(options->ranks, [&](Communicator world) { bench_router(world, *options); });
          }};
}

}  // namespace cadre
