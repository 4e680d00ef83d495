// SPDX-License-Identifier: Apache-2.0
#include "launch/bench/gemm_products.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "launch/bench/bench.hpp"
#include "layers/kernels/gpu/cuda.hpp"

namespace cadre {

ProductRates best_of(const ProductRates& a, const ProductRates& b) {
  return {std::max(a.forward, b.forward), std::max(a.input_grad, b.input_grad), std::max(a.weight_grad, b.weight_grad)};
}

GemmProducts::GemmProducts(const Kernels& kernels, int64_t num_weights, const ProductShape& shape)
    : kernels_(kernels), clock_(kernels.make_clock()), shape_(shape) {
  for (int64_t i = 0; i < num_weights; ++i) {
    store_.add(weights_.emplace_back(make_weight({{fmt::format("weight.{}", i), shape.out}}, shape.in, 0.02)));
  }
  store_.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false, kernels.memory());
  store_.initialise(1);
  for (int64_t i = 0; i < num_weights; ++i) {
    groups_.push_back({i * shape.rows, shape.rows, &weights_[static_cast<size_t>(i)]});
  }
  const int64_t rows = num_weights * shape.rows;
  x_ = arena_.take("x", DType::f32, {rows, shape.in});
  dy_ = arena_.take("dy", DType::f32, {rows, shape.out});
  y_ = arena_.take("y", DType::f32, {rows, shape.out});
  dx_ = arena_.take("dx", DType::f32, {rows, shape.in});
}

ProductRates GemmProducts::grouped(int64_t iterations) {
  return rates(
      iterations, [this] { kernels_.grouped_linear(x_, groups_, y_); },
      [this] { kernels_.grouped_linear_input_grad(dy_, groups_, dx_); },
      [this] { kernels_.grouped_linear_weight_grad(x_, dy_, groups_, Accumulate::no); });
}

ProductRates GemmProducts::single(int64_t iterations) {
  const Parameter& weight = weights_.front();
  return rates(
      iterations, [&] { kernels_.linear(x_, weight, y_); },
      [&] { kernels_.linear_input_grad(dy_, weight, dx_, Accumulate::no); },
      [&] { kernels_.linear_weight_grad(x_, dy_, weight.grad, Accumulate::no); });
}

ProductRates GemmProducts::rates(int64_t iterations, const Work& forward, const Work& input_grad,
                                 const Work& weight_grad) {
  std::vector<double> ms[3];
  for (int64_t i = -1; i < iterations; ++i) {  // one to warm up
    draw_rows(kernels_, x_, num_drawn_++);
    draw_rows(kernels_, dy_, num_drawn_++);
    const double times[] = {timed_ms(forward), timed_ms(input_grad), timed_ms(weight_grad)};
    for (size_t product = 0; i >= 0 && product < 3; ++product) ms[product].push_back(times[product]);
  }
  const double gflop = 2e-9 * static_cast<double>(x_.numel() * shape_.out);
  const auto rate = [&](const std::vector<double>& times) { return gflop / summarise(times).p50 * 1e3; };
  return {rate(ms[0]), rate(ms[1]), rate(ms[2])};
}

double GemmProducts::timed_ms(const Work& work) {
  clock_->start();
  work();
  return clock_->stop_ms();
}

std::vector<ProductWay> ways_to_multiply(const std::string& device, Precision precision, const std::string& chosen) {
  if (device != "cpu" || precision != Precision::fp32) return {{"chosen", chosen}};
  std::vector<ProductWay> ways = {{"openblas", "openblas"}, {"openblas-packed", "nt=bbbb nn=bbbb tn=bbbb copy=1111"}};
  if (has_onednn()) ways.insert(ways.end(), {{"onednn", "onednn"}, {"onednn-packed", "onednn-packed"}});
  ways.push_back({"chosen", chosen});
  return ways;
}

std::unique_ptr<Kernels> kernels_of_way(const std::string& device, Precision precision, ThreadPool& threads,
                                        const std::string& products) {
  if (device != "cpu") return make_cuda_kernels(0, precision);
  return make_cpu_kernels(
      precision,
      {.bits = RowBits::as_in_training, .threads = &threads, .products = ProductChoice::parse(products, "products")});
}

}  // namespace cadre
