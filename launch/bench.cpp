// SPDX-License-Identifier: Apache-2.0
// cadre bench: what parts of a step cost on this machine, each beside its floor.
#include <memory>

#include "launch/bench_gemm.hpp"
#include "launch/bench_layer.hpp"
#include "launch/command.hpp"
#include "layers/nn/ffn.hpp"

namespace cadre {
namespace {

struct Options {
  std::string what;
  std::string activation = "silu";
  std::string precision = "fp32";
  int64_t experts = 16;
  int64_t top_k = 4;
  int64_t threads = 1;
  int64_t ranks = 0;
  BenchLayerOptions layer;
};

void run_bench(Options options, const Job& job) {
  set_kernel_threads(static_cast<int>(options.threads));
  if (options.what == "gemm") {
    if (job.rank() == 0) bench_gemm({.iterations = options.layer.iterations, .json = options.layer.json});
    return;
  }
  CADRE_CHECK(
      options.top_k <= options.experts,
      fmt::format("--top-k {} with --experts {}, allowed: 1 to {}", options.top_k, options.experts, options.experts),
      "lower --top-k or raise --experts");
  options.layer.experts = static_cast<int>(options.experts);
  options.layer.top_k = static_cast<int>(options.top_k);
  options.layer.activation = activation_named(options.activation);
  options.layer.precision = options.precision == "bf16" ? Precision::bf16 : Precision::fp32;
  job.on_ranks(options.ranks, [&](Communicator world) { bench_layer(world, options.layer); });
}

}  // namespace

Command bench_command() {
  const auto options = std::make_shared<Options>();
  BenchLayerOptions& layer = options->layer;
  return {.name = "bench",
          .summary = "measures the products with weights (gemm) or a whole mixture-of-experts layer (layer)",
          .arguments = {{"WHAT", &options->what, one_of({"gemm", "layer"}), "what to measure"}},
          .options = {{"tokens", &layer.tokens, at_least(1), "tokens of each rank"},
                      {"hidden", &layer.hidden, at_least(1), "width of a row"},
                      {"ffn", &layer.ffn, at_least(1), "inner width of an expert"},
                      {"activation", &options->activation, one_of({"silu", "gelu", "relu"}), "of the experts"},
                      {"experts", &options->experts, at_least(1), "routed experts, over all ranks"},
                      {"top-k", &options->top_k, at_least(1), "experts of a token"},
                      {"precision", &options->precision, one_of({"fp32", "bf16"}), "of the products"},
                      {"strategy", &layer.strategy, one_of({"flat", "all_gather", "shared"}), "of the exchange"},
                      {"iterations", &layer.iterations, at_least(1), "measured, after the warm-up"},
                      {"warmup", &layer.warmup, at_least(0), "iterations before them"},
                      {"threads", &options->threads, at_least(1), "BLAS threads a rank"},
                      ranks_option(options->ranks),
                      {"json", &layer.json, any(), "file for the report"}},
          .run = [options](const Job& job) { run_bench(*options, job); }};
}

}  // namespace cadre
