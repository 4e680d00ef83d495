// SPDX-License-Identifier: Apache-2.0
// `cadre bench gemm`: GFLOP/s of y = x W^T, dx = dy W and dW = dy^T x by precision and shape, and of the products of several
// experts in one call beside one product of as many FLOPs. Medians on rows that are drawn anew.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "launch/bench/bench.hpp"
#include "launch/bench/gemm_products.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/parallel/devices.hpp"

namespace cadre {
namespace {

struct BenchGemmArguments {
  std::string part = "all";
  int64_t rows = 0;     // of the single products; 0: all shapes
  int64_t experts = 0;  // of a grouped product; 0, here and below: by the device
  int64_t tokens = 0;   // of each
  int64_t out = 0;
  int64_t in = 0;
  std::string precision = "bf16";
  int64_t iterations = 10;
  int64_t threads = 1;
  bool calibrate = false;
  std::string device = "cpu";
  std::string json;
};

constexpr ProductShape kShapes[] = {{16, 2048, 512},  {64, 2048, 512},    {256, 2048, 512},   {512, 1024, 512},
                                    {512, 512, 1024}, {1024, 1024, 1024}, {2048, 2048, 2048}, {512, 2048, 7168}};

void print_gemm_row(std::string_view what, const ProductShape& shape, const ProductRates& rates) {
  fmt::print("{:>21} {:>6} {:>6} {:>6} {:>10.0f} {:>10.0f} {:>11.0f}\n", what, shape.rows, shape.out, shape.in,
             rates.forward, rates.input_grad, rates.weight_grad);
}

nlohmann::json rates_json(const ProductRates& rates) {
  return {{"forward_gflops", rates.forward},
          {"input_grad_gflops", rates.input_grad},
          {"weight_grad_gflops", rates.weight_grad}};
}

nlohmann::json bench_single(const BenchGemmArguments& options, ThreadPool& threads, const std::string& chosen) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    const char* name = precision == Precision::bf16 ? "bf16" : "fp32";
    for (const ProductShape& shape : kShapes) {
      if (options.rows > 0 && shape.rows != options.rows) continue;
      ProductRates best = {};
      ProductRates rates = {};
      for (const ProductWay& way : ways_to_multiply(options.device, precision, chosen)) {
        const auto kernels = kernels_of_way(options.device, precision, threads, way.products);
        rates = GemmProducts(*kernels, 1, shape).single(options.iterations);
        best = best_of(best, rates);
        print_gemm_row(fmt::format("{} {}", name, way.name), shape, rates);
        nlohmann::json& row = rows.emplace_back(rates_json(rates));
        row.update(
            {{"precision", name}, {"products", way.name}, {"rows", shape.rows}, {"out", shape.out}, {"in", shape.in}});
      }
      if (precision == Precision::fp32) {
        fmt::print("{:>42} {:>8.0f} % {:>8.0f} % {:>9.0f} %\n", "chosen / best", 100.0 * rates.forward / best.forward,
                   100.0 * rates.input_grad / best.input_grad, 100.0 * rates.weight_grad / best.weight_grad);
      }
    }
  }
  return rows;
}

// By default an expert of DeepSeek-V3 on a device, and what a CPU multiplies in a second.
nlohmann::json bench_grouped(const BenchGemmArguments& options, ThreadPool& threads, const std::string& chosen) {
  const bool on_cpu = options.device == "cpu";
  const auto given_or = [&](int64_t given, int64_t cuda, int64_t cpu) {
    return given > 0 ? given : on_cpu ? cpu : cuda;
  };
  const int64_t experts = given_or(options.experts, 8, 4);
  const ProductShape each = {given_or(options.tokens, 256, 64), given_or(options.out, 2048, 512),
                             given_or(options.in, 7168, 1024)};
  const ProductShape all = {experts * each.rows, each.out, each.in};
  const Precision precision = options.precision == "bf16" ? Precision::bf16 : Precision::fp32;
  const auto kernels = kernels_of_way(options.device, precision, threads, chosen);
  const ProductRates grouped = GemmProducts(*kernels, experts, each).grouped(options.iterations);
  const ProductRates single = GemmProducts(*kernels, 1, all).single(options.iterations);
  fmt::print("{} experts of {} tokens in one call, and one product of as many FLOPs, {}\n", experts, each.rows,
             options.precision);
  print_gemm_row("grouped", each, grouped);
  print_gemm_row("one", all, single);
  fmt::print("{:>42} {:>8.1f} % {:>8.1f} % {:>9.1f} %\n", "grouped / one", 100.0 * grouped.forward / single.forward,
             100.0 * grouped.input_grad / single.input_grad, 100.0 * grouped.weight_grad / single.weight_grad);
  return {{"precision", options.precision},
          {"experts", experts},
          {"tokens", each.rows},
          {"out", each.out},
          {"in", each.in},
          {"together", rates_json(grouped)},
          {"one", rates_json(single)}};
}

void bench_gemm(const BenchGemmArguments& options, ThreadPool& threads) {
  threads.resize(static_cast<int>(options.threads));
  const std::string chosen = choose_products(product_cache(), options.calibrate).text();
  fmt::print("chosen: {}\n", chosen);
  fmt::print("{:>21} {:>6} {:>6} {:>6} {:>10} {:>10} {:>11}   GFLOP/s, median of {}\n", "", "rows", "out", "in",
             "forward", "input grad", "weight grad", options.iterations);
  nlohmann::json report = {{"bench", "gemm"}, {"device", options.device}};
  if (options.part != "grouped") report["rows"] = bench_single(options, threads, chosen);
  if (options.part != "single") report["grouped"] = bench_grouped(options, threads, chosen);
  if (!options.json.empty()) write_json_report(options.json, report);
}

}  // namespace

Command bench_gemm_command() {
  const auto options = std::make_shared<BenchGemmArguments>();
  return {.name = "gemm",
          .summary =
              "measures the three products with a weight at the sizes of experts, alone and grouped, in "
              "one process",
          .options = {{"part", &options->part, one_of({"all", "single", "grouped"}), "what to measure"},
                      {"rows", &options->rows, at_least(0), "single: only shapes with this many rows; 0: all"},
                      {"experts", &options->experts, at_least(0),
                       "experts of the grouped product; 0, also below: chosen by device"},
                      {"tokens", &options->tokens, at_least(0), "grouped: tokens of each expert"},
                      {"out", &options->out, at_least(0), "grouped: rows of a weight"},
                      {"in", &options->in, at_least(0), "grouped: columns of a weight"},
                      {"precision", &options->precision, one_of({"fp32", "bf16"}), "grouped: type of the products"},
                      {"iterations", &options->iterations, at_least(1), "measured iterations"},
                      {"threads", &options->threads, at_least(1), "threads that compute"},
                      {"calibrate", &options->calibrate, any(), "measure anew which library multiplies, and keep that"},
                      device_option(options->device),
                      {"json", &options->json, any(), "also write the result to this file, as JSON"}},
          .run = [options](const Job& job) {
            if (job.rank() == 0) bench_gemm(*options, job.context().threads());
          }};
}

}  // namespace cadre
