// SPDX-License-Identifier: Apache-2.0
// Products with weights of one shape, timed: y = x W^T, dx = dy W, dW = dy^T x, by the libraries that a back end has.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "layers/kernels/kernels.hpp"
#include "layers/tensor/arena.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

// x [rows,in], W [out,in].
struct ProductShape {
  int64_t rows, out, in;
  auto operator<=>(const ProductShape&) const = default;
};

// GFLOP/s.
struct ProductRates {
  double forward = 0.0;
  double input_grad = 0.0;
  double weight_grad = 0.0;
};
ProductRates best_of(const ProductRates& a, const ProductRates& b);

// Weights of one shape, a range of rows each, and operands for their products, drawn anew for each.
class GemmProducts {
 public:
  GemmProducts(const Kernels& kernels, int64_t num_weights, const ProductShape& shape);

  // Medians of products of all weights in one call, and of those of one weight.
  ProductRates grouped(int64_t iterations);
  ProductRates single(int64_t iterations);

 private:
  using Work = std::function<void()>;
  ProductRates rates(int64_t iterations, const Work& forward, const Work& input_grad, const Work& weight_grad);
  double timed_ms(const Work& work);

  const Kernels& kernels_;
  std::unique_ptr<DeviceClock> clock_;
  ProductShape shape_;
  std::deque<Parameter> weights_;
  ParameterStore store_;
  std::vector<RowGroup> groups_;
  Arena arena_{Arena::Mode::real, /*poison=*/false, kernels_.memory()};
  Tensor x_, dy_, y_, dx_;
  uint64_t num_drawn_ = 0;
};

// A way to multiply on a device; the last of all is `chosen`, which a run takes.
struct ProductWay {
  const char* name;
  std::string products;
};
std::vector<ProductWay> ways_to_multiply(const std::string& device, Precision precision, const std::string& chosen);

std::unique_ptr<Kernels> kernels_of_way(const std::string& device, Precision precision, ThreadPool& threads,
                                        const std::string& products);

}  // namespace cadre
