// SPDX-License-Identifier: Apache-2.0
// `cadre bench attention`: causal attention, forward and backward, beside one product of as many FLOPs, in turn in the same run.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <memory>
#include <vector>

#include "launch/bench/bench.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {
namespace {

// By default the heads of DeepSeek-V3, of which there are more.
struct BenchAttentionArguments {
  int64_t sequences = 1;
  int64_t length = 512;
  int64_t heads = 16;
  int64_t head_dim = 192;
  int64_t value_dim = 128;
  std::string precision = "bf16";
  BenchOptions bench;
};

class AttentionBench {
 public:
  AttentionBench(const Communicator& world, const BenchAttentionArguments& options)
      : options_(options),
        rig_(world, options.bench, options.precision),
        shape_{options.sequences, options.length,    options.length,
               options.length,    options.heads,     options.heads,
               options.head_dim,  options.value_dim, 1.0 / std::sqrt(static_cast<double>(options.head_dim))},
        weight_(make_weight({{"weight", kWidth}}, kWidth, 0.02)) {
    store_.add(weight_);
    store_.allocate(DType::f32, /*with_grad=*/false, /*dry_run=*/false, rig_.kernels().memory());
    store_.initialise(1);
    for (Tensor* rows : {&q_, &k_, &dq_, &dk_}) *rows = take(options.head_dim);
    for (Tensor* rows : {&v_, &out_, &dout_, &dv_}) *rows = take(options.value_dim);
    lse_ = rig_.inputs().take("lse", DType::f32, {options.sequences, options.heads, options.length});
    product_rows_ = std::max<int64_t>(1, static_cast<int64_t>(flops() / (2.0 * kWidth * kWidth)));
    x_ = rig_.inputs().take("x", DType::f32, {product_rows_, kWidth});
    y_ = rig_.inputs().take("y", DType::f32, {product_rows_, kWidth});
  }

  // forward, backward, product
  std::vector<TimesOverRanks> measure() {
    const Kernels& kernels = rig_.kernels();
    const auto draw = [this](int64_t iteration) {
      if (iteration > 0) return;  // times do not depend on values
      for (const Tensor& rows : {q_, k_, v_, dout_, x_}) rig_.draw(rows);
    };
    return rig_.measure(draw, {[&] { kernels.attention(shape_, q_, k_, v_, out_, lse_); },
                               [&] { kernels.attention_grad(shape_, q_, k_, v_, out_, lse_, dout_, dq_, dk_, dv_); },
                               [&] { kernels.linear(x_, weight_, y_); }});
  }

  // Of forward and backward, where a query meets the keys that it sees: two products forward, five backward.
  double flops() const {
    const auto length = static_cast<double>(options_.length);
    const double pairs = static_cast<double>(options_.sequences * options_.heads) * length * (length + 1.0) / 2.0;
    return 2.0 * pairs * static_cast<double>(4 * options_.head_dim + 3 * options_.value_dim);
  }
  double product_flops() const { return 2.0 * static_cast<double>(product_rows_) * kWidth * kWidth; }

 private:
  static constexpr int64_t kWidth = 2048;

  Tensor take(int64_t width) {
    return rig_.inputs().take("rows", DType::f32, {options_.sequences * options_.length, options_.heads, width});
  }

  BenchAttentionArguments options_;
  BenchRig rig_;
  AttentionShape shape_;
  Parameter weight_;
  ParameterStore store_;
  Tensor q_, k_, v_, out_, lse_, dout_, dq_, dk_, dv_;
  int64_t product_rows_ = 0;
  Tensor x_, y_;
};

void bench_attention(const Communicator& world, const BenchAttentionArguments& options) {
  AttentionBench bench(world, options);
  const std::vector<TimesOverRanks> times = bench.measure();
  if (world.rank() != 0) return;
  const double forward_ms = times[0].slowest.p50;
  const double backward_ms = times[1].slowest.p50;
  const double product_ms = times[2].slowest.p50;
  const double gflops = bench.flops() / (forward_ms + backward_ms) * 1e-6;
  const double product_gflops = bench.product_flops() / product_ms * 1e-6;
  const double percent = 100.0 * gflops / product_gflops;
  fmt::print("attention {} ranks, {} sequences of {}, {} heads of {} and {}, {}\n", world.size(), options.sequences,
             options.length, options.heads, options.head_dim, options.value_dim, options.precision);
  fmt::print("  forward  p50 {:8.3f} ms\n  backward p50 {:8.3f} ms, both {:.1f} GFLOP/s\n", forward_ms, backward_ms,
             gflops);
  fmt::print("  product  p50 {:8.3f} ms, {:.1f} GFLOP/s: {:.1f} % of its rate\n", product_ms, product_gflops, percent);
  if (options.bench.json.empty()) return;
  write_json_report(options.bench.json, {{"bench", "attention"},
                                         {"device", options.bench.device},
                                         {"ranks", world.size()},
                                         {"sequences", options.sequences},
                                         {"length", options.length},
                                         {"heads", options.heads},
                                         {"head_dim", options.head_dim},
                                         {"value_dim", options.value_dim},
                                         {"precision", options.precision},
                                         {"forward_ms", forward_ms},
                                         {"backward_ms", backward_ms},
                                         {"gflops", gflops},
                                         {"product_gflops", product_gflops},
                                         {"percent_of_product", percent}});
}

}  // namespace

Command bench_attention_command() {
  const auto options = std::make_shared<BenchAttentionArguments>();
  return {
      .name = "attention",
      .summary = "measures causal attention, forward and backward, and one product of as many FLOPs",
      .options = bench_fields({{"sequences", &options->sequences, at_least(1), "sequences of each rank"},
                               {"length", &options->length, at_least(1), "tokens of each"},
                               {"heads", &options->heads, at_least(1), "heads of queries, keys and values"},
                               {"head-dim", &options->head_dim, at_least(1), "width of a query and a key"},
                               {"value-dim", &options->value_dim, at_least(1), "width of a value"},
                               {"precision", &options->precision, one_of({"fp32", "bf16"}), "type of the products"}},
                              options->bench),
      .run = [options](const Job& job) {
        on_bench_ranks(job, options->bench, [&](const Communicator& world) { bench_attention(world, *options); });
      }};
}

}  // namespace cadre
