// SPDX-License-Identifier: Apache-2.0
// `cadre bench gemm`: GFLOP/s of y = x W^T, dx = dy W and dW = dy^T x by precision and shape, warm, on random data.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "launch/bench.hpp"
#include "launch/statistics.hpp"
#include "layers/kernels/cuda.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/tensor/arena.hpp"
#include "layers/tensor/parameter_store.hpp"

namespace cadre {
namespace {

struct Options {
  int64_t iterations = 10;
  int64_t threads = 1;
  std::string device = "cpu";
  std::string json;
};

struct Shape {
  int64_t rows, out, in;
};
constexpr Shape kShapes[] = {{16, 2048, 512},  {64, 2048, 512},    {256, 2048, 512},   {512, 1024, 512},
                             {512, 512, 1024}, {1024, 1024, 1024}, {2048, 2048, 2048}, {512, 2048, 7168}};

void fill_random(const Tensor& tensor, uint64_t id) {
  const Random random(11, "bench gemm", id);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    tensor.data<float>()[i] = static_cast<float>(random.uniform(static_cast<uint64_t>(i)) - 0.5);
  }
}

// Median GFLOP/s of `product`, which costs `flops`.
template <class Product>
double rate(double flops, int64_t iterations, Product&& product) {
  product();
  std::vector<double> seconds;
  for (int64_t i = 0; i < iterations; ++i) {
    const int64_t begin = trace_clock_ns();
    product();
    seconds.push_back(static_cast<double>(trace_clock_ns() - begin) * 1e-9);
  }
  return flops / summarise(seconds).p50 * 1e-9;
}

nlohmann::json bench_shape(const Kernels& kernels, const char* precision, const Shape& shape, int64_t iterations) {
  Parameter weight = make_weight({{"weight", shape.out}}, shape.in, 0.02);
  ParameterStore store;
  store.add(weight);
  store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false, kernels.memory());
  store.initialise(1);
  Arena arena(Arena::Mode::real, /*poison=*/false, kernels.memory());
  const Tensor x = arena.take("x", DType::f32, {shape.rows, shape.in});
  const Tensor y = arena.take("y", DType::f32, {shape.rows, shape.out});
  const Tensor dx = arena.take("dx", DType::f32, {shape.rows, shape.in});
  fill_random(x, 1);
  fill_random(y, 2);
  const double flops = 2.0 * static_cast<double>(shape.rows * shape.out * shape.in);
  const double forward = rate(flops, iterations, [&] { kernels.linear(x, weight, y); });
  const double input = rate(flops, iterations, [&] { kernels.linear_input_grad(y, weight, dx, Accumulate::no); });
  const double weights =
      rate(flops, iterations, [&] { kernels.linear_weight_grad(x, y, weight.grad, Accumulate::no); });
  fmt::print("{:>5} {:>6} {:>6} {:>6} {:>10.0f} {:>10.0f} {:>10.0f}\n", precision, shape.rows, shape.out, shape.in,
             forward, input, weights);
  return {{"precision", precision},
          {"rows", shape.rows},
          {"out", shape.out},
          {"in", shape.in},
          {"forward_gflops", forward},
          {"input_grad_gflops", input},
          {"weight_grad_gflops", weights}};
}

void bench_gemm(const Options& options) {
  fmt::print("{:>5} {:>6} {:>6} {:>6} {:>10} {:>10} {:>10}   GFLOP/s, median of {}\n", "", "rows", "out", "in",
             "forward", "input grad", "weight grad", options.iterations);
  nlohmann::json rows = nlohmann::json::array();
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    const auto kernels = options.device == "cpu" ? make_cpu_kernels(precision) : make_cuda_kernels(0, precision);
    const char* name = precision == Precision::bf16 ? "bf16" : "fp32";
    for (const Shape& shape : kShapes) rows.push_back(bench_shape(*kernels, name, shape, options.iterations));
  }
  if (!options.json.empty())
    write_json_report(options.json, {{"bench", "gemm"}, {"device", options.device}, {"rows", rows}});
}

}  // namespace

Command bench_gemm_command() {
  const auto options = std::make_shared<Options>();
  return {.name = "gemm",
          .summary = "the three products with a weight, at the sizes experts see, in one process",
          .options = {{"iterations", &options->iterations, at_least(1), "measured"},
                      {"threads", &options->threads, at_least(1), "BLAS threads"},
                      device_option(options->device),
                      {"json", &options->json, any(), "file for the report"}},
          .run = [options](const Job& job) {
            set_kernel_threads(static_cast<int>(options->threads));
            if (job.rank() == 0) bench_gemm(*options);
          }};
}

}  // namespace cadre
