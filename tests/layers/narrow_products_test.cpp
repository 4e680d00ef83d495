// SPDX-License-Identifier: Apache-2.0
// Weights in bf16, int8 and fp8: what their codes stand for, products of these values, and rows that do not depend on others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/job/thread_pool.hpp"
#include "layers/kernels/cpu/gemm.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::narrow_products_test {
namespace {

struct Format {
  const char* name;
  WeightFormat format;
  double error;  // of a product with random weights, relative to its size
};
constexpr Format kFormats[] = {
    {"bf16", WeightFormat::bf16, 0.003}, {"int8", WeightFormat::int8, 0.01}, {"fp8", WeightFormat::fp8, 0.04}};

class NarrowProducts : public testing::TestWithParam<Format> {
 protected:
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }
  Tensor out(std::initializer_list<int64_t> shape) { return arena.take("out", DType::f32, shape); }  // NaN
  NarrowMatrix narrow(const Tensor& values) {
    return {values.data<float>(), values.dim(0), values.dim(1), GetParam().format, threads};
  }

  // By the definition of each format, one value at a time.
  std::vector<double> values_of(const NarrowMatrix& matrix) const {
    std::vector<double> values;
    for (int64_t row = 0; row < matrix.rows; ++row) {
      for (int64_t i = 0; i < matrix.width; ++i) {
        const int64_t at = row * matrix.width + i;
        if (matrix.format == WeightFormat::bf16) {
          values.push_back(to_float(matrix.codes.as<bf16>()[at]));
          continue;
        }
        const int64_t tile = matrix.format == WeightFormat::int8 ? 32 : 128;
        const float scale = matrix.scales.as<float>()[row * ((matrix.width + tile - 1) / tile) + i / tile];
        const float code = matrix.format == WeightFormat::int8 ? static_cast<float>(matrix.codes.as<int8_t>()[at])
                                                               : from_fp8(matrix.codes.as<uint8_t>()[at]) * 0x1p-8F;
        values.push_back(code * scale);
      }
    }
    return values;
  }

  ThreadPool threads;
  Arena arena{Arena::Mode::real, true};
  uint64_t next_id = 0;
};

TEST_P(NarrowProducts, CodesAreNearTheValues) {
  const Tensor weight = random({5, 300});
  for (int64_t i = 0; i < 64; ++i) weight.data<float>()[i] = 0.0F;  // whole tiles of zeros
  weight.data<float>()[100] = 1e-30F;
  const std::vector<double> kept = values_of(narrow(weight));
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t i = 0; i < 300; ++i) {
      const auto at = static_cast<size_t>(row * 300 + i);
      const double value = weight.data<float>()[at];
      double largest = 0.0;  // of its tile
      const int64_t tile = GetParam().format == WeightFormat::int8 ? 32 : 128;
      for (int64_t j = i / tile * tile; j < std::min<int64_t>(300, (i / tile + 1) * tile); ++j) {
        largest = std::max(largest, std::abs(double{weight.data<float>()[row * 300 + j]}));
      }
      double bound = std::abs(value) * 0x1p-8;                                          // bf16: 8 bits
      if (GetParam().format == WeightFormat::int8) bound = largest / 127.0 * 0.500001;  // half a step
      if (GetParam().format == WeightFormat::fp8) bound = std::max(std::abs(value) * 0x1p-4, largest / 448.0 * 0x1p-10);
      EXPECT_LE(std::abs(kept[at] - value), bound * 1.00001) << row << ", " << i;
    }
  }
}

TEST_P(NarrowProducts, AreSumsOfWhatTheCodesStandFor) {
  for (const int64_t width : {int64_t{7}, int64_t{33}, int64_t{300}, int64_t{5000}}) {
    constexpr int64_t kOut = 71;
    const Tensor x = random({40, width});
    const NarrowMatrix matrix = narrow(random({kOut, width}));
    const std::vector<double> w = values_of(matrix);
    for (const int64_t rows : {1, 2, 3, 6, 7, 40}) {
      const Tensor y = out({rows, kOut});
      row_gemm({rows, kOut, width, &threads}, {x.data<float>(), width}, matrix, y.data<float>(), kOut);
      for (int64_t row = 0; row < rows; ++row) {
        double largest = 0.0;
        for (int64_t k = 0; k < width; ++k)
          largest = std::max(largest, std::abs(double{x.data<float>()[row * width + k]}));
        for (int64_t n = 0; n < kOut; ++n) {
          double sum = 0.0;
          double size = 0.0;
          double weights = 0.0;
          for (int64_t k = 0; k < width; ++k) {
            const double weight = w[static_cast<size_t>(n * width + k)];
            const double term = x.data<float>()[row * width + k] * weight;
            sum += term;
            size += std::abs(term);
            weights += std::abs(weight);
          }
          // Beside int8, x is rounded to multiples of its largest element / 32767.
          const double rounding = GetParam().format == WeightFormat::int8 ? largest / 32767.0 / 2.0 * weights : 0.0;
          ASSERT_NEAR(y.data<float>()[row * kOut + n], sum, 0x1p-22 * size + 1.0001 * rounding)
              << rows << " rows, width " << width;
        }
      }
    }
  }
}

TEST_P(NarrowProducts, RowsAndThreadsChangeNoBit) {
  constexpr int64_t kOut = 330;
  constexpr int64_t kIn = 257;
  constexpr int64_t kRows = 19;
  const Tensor x = random({kRows, kIn});
  Parameter weight;
  weight.value = random({kOut, kIn});
  const Tensor whole = out({kRows, kOut});
  make_narrow_products(GetParam().format, threads)->linear(x, weight, whole);
  for (const int size : {1, 3}) {
    threads.resize(size);
    for (int64_t rows = 1; rows < kRows; ++rows) {
      const Tensor part = out({rows, kOut});
      make_narrow_products(GetParam().format, threads)->linear(x.rows(kRows - rows, rows), weight, part);
      EXPECT_EQ(std::memcmp(part.raw(), whole.rows(kRows - rows, rows).raw(), part.bytes()), 0) << rows;
    }
  }
}

TEST_P(NarrowProducts, ComeCloseToTheWeightAndFollowIt) {
  Parameter weight;
  weight.value = random({64, 512});
  const Tensor x = random({8, 512});
  const auto products = make_narrow_products(GetParam().format, threads);
  for (int round = 0; round < 2; ++round) {
    const Tensor y = out({8, 64});
    products->linear(x, weight, y);
    double error = 0.0;
    double size = 0.0;
    for (int64_t t = 0; t < 8; ++t) {
      for (int64_t n = 0; n < 64; ++n) {
        double sum = 0.0;
        for (int64_t k = 0; k < 512; ++k) {
          sum += double{x.data<float>()[t * 512 + k]} * double{weight.value.data<float>()[n * 512 + k]};
        }
        error += std::pow(y.data<float>()[t * 64 + n] - sum, 2);
        size += sum * sum;
      }
    }
    EXPECT_LE(std::sqrt(error / size), GetParam().error);
    EXPECT_GE(std::sqrt(error / size), 0.1 * GetParam().error);  // it is the narrow weight that is multiplied
    test::fill_random(weight.value, 77);
    ++weight.version;
  }
}

// The square root of the mean square of all errors: those of rounded rows are independent of each other, so that it is far below
// their bound. A factor that is off, or integers of 8 bits, would show.
TEST_P(NarrowProducts, RoundRowsFarLessThanWeights) {
  constexpr int64_t kOut = 64;
  constexpr int64_t kIn = 1024;
  const Tensor x = random({3, kIn});
  const NarrowMatrix matrix = narrow(random({kOut, kIn}));
  const std::vector<double> w = values_of(matrix);
  const Tensor y = out({3, kOut});
  row_gemm({3, kOut, kIn, &threads}, {x.data<float>(), kIn}, matrix, y.data<float>(), kOut);
  double error = 0.0;
  double size = 0.0;
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t n = 0; n < kOut; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < kIn; ++k) sum += x.data<float>()[row * kIn + k] * w[static_cast<size_t>(n * kIn + k)];
      error += std::pow(y.data<float>()[row * kOut + n] - sum, 2);
      size += sum * sum;
    }
  }
  EXPECT_LE(std::sqrt(error / size), 1e-4);
}

TEST_P(NarrowProducts, RowsOfAnySizeAndWithoutANumber) {
  constexpr int64_t kIn = 40;
  const float kInfinity = std::numeric_limits<float>::infinity();
  const Tensor x = random({5, kIn});
  for (int64_t i = 0; i < kIn; ++i) {
    x.data<float>()[i] = 0.0F;
    x.data<float>()[kIn + i] *= 1e30F;
    x.data<float>()[2 * kIn + i] *= 1e-25F;
  }
  x.data<float>()[3 * kIn + 7] = std::nanf("");
  x.data<float>()[4 * kIn + 39] = kInfinity;
  const NarrowMatrix matrix = narrow(random({4, kIn}));
  const std::vector<double> w = values_of(matrix);
  const Tensor y = out({5, 4});
  row_gemm({5, 4, kIn, &threads}, {x.data<float>(), kIn}, matrix, y.data<float>(), 4);
  for (int64_t n = 0; n < 4; ++n) {
    EXPECT_EQ(y.data<float>()[n], 0.0F);
    for (const int64_t row : {1, 2}) {
      double sum = 0.0;
      double size = 0.0;
      for (int64_t k = 0; k < kIn; ++k) {
        const double term = x.data<float>()[row * kIn + k] * w[static_cast<size_t>(n * kIn + k)];
        sum += term;
        size += std::abs(term);
      }
      EXPECT_NEAR(y.data<float>()[row * 4 + n], sum, 1e-3 * size) << "row " << row;
    }
    EXPECT_FALSE(std::isfinite(y.data<float>()[3 * 4 + n]));
    EXPECT_FALSE(std::isfinite(y.data<float>()[4 * 4 + n]));
  }
}

TEST_P(NarrowProducts, HaveNoGradients) {
  Parameter weight;
  weight.value = random({4, 4});
  const Tensor x = random({2, 4});
  const auto products = make_narrow_products(GetParam().format, threads);
  EXPECT_THROW(products->linear_input_grad(x, weight, x, Accumulate::no), Error);
  EXPECT_THROW(products->linear_weight_grad(x, x, weight.value, Accumulate::no), Error);
}

INSTANTIATE_TEST_SUITE_P(Formats, NarrowProducts, testing::ValuesIn(kFormats),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace cadre::narrow_products_test
