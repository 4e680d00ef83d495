// SPDX-License-Identifier: Apache-2.0
// The fp8 recipe on the CPU: operands are rounded bit for bit as the definition says, tile by tile and block by block;
// products are those of the rounded operands; what keeps high precision has the bits of fp32.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/nn/embedding.hpp"
#include "layers/nn/linear.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::fp8_products_test {
namespace {

constexpr int64_t kTile = 128;

// The magnitude of a code: m 2^-9 for exponent 0, else (1 + m / 8) 2^(e - 7).
double value_of_code(int code) {
  const int exponent = code >> 3;
  const int mantissa = code & 7;
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
}

// The nearest of all 127 magnitudes, of two as near the one with the even code, with the sign of `value`.
double nearest_fp8(double value) {
  int best = 0;
  for (int code = 1; code <= 0x7e; ++code) {
    const double distance = std::fabs(value_of_code(code) - std::fabs(value));
    const double best_distance = std::fabs(value_of_code(best) - std::fabs(value));
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) best = code;
  }
  return std::copysign(value_of_code(best), value);
}

float defined_scale(float amax, Fp8Scale kind) {
  const float scale = std::max(amax, 1e-4F) / 448.0F;
  if (kind == Fp8Scale::fp32) return scale;
  float power = std::ldexp(1.0F, -60);
  while (power < scale) power *= 2.0F;
  return power;
}

// A matrix and what the definition makes of it with one scale for each `tile_rows` x `tile_width` values.
struct Rounded {
  std::vector<float> codes;
  std::vector<float> scales;  // row-major over the tiles
  Tensor values;              // f64: code times scale, exact

  Rounded(Arena& arena, const Tensor& matrix, int64_t tile_rows, int64_t tile_width, Fp8Scale kind)
      : codes(static_cast<size_t>(matrix.numel())),
        values(arena.take("rounded", DType::f64, {matrix.dim(0), matrix.dim(1)})) {
    const int64_t width = matrix.dim(1);
    for (int64_t row = 0; row < matrix.dim(0); row += tile_rows) {
      for (int64_t column = 0; column < width; column += tile_width) {
        const int64_t end_row = std::min(matrix.dim(0), row + tile_rows);
        const int64_t end_column = std::min(width, column + tile_width);
        float amax = 0.0F;
        for (int64_t r = row; r < end_row; ++r) {
          for (int64_t c = column; c < end_column; ++c) {
            amax = std::max(amax, std::fabs(matrix.data<float>()[r * width + c]));
          }
        }
        const float scale = defined_scale(amax, kind);
        scales.push_back(scale);
        for (int64_t r = row; r < end_row; ++r) {
          for (int64_t c = column; c < end_column; ++c) {
            const int64_t i = r * width + c;
            codes[static_cast<size_t>(i)] = static_cast<float>(nearest_fp8(matrix.data<float>()[i] / scale));
            values.data<double>()[i] = double{codes[static_cast<size_t>(i)]} * double{scale};
          }
        }
      }
    }
  }
};

std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

class Fp8Products : public testing::TestWithParam<Fp8Scale> {
 protected:
  Tensor out(std::initializer_list<int64_t> shape) { return arena.take("out", DType::f32, shape); }  // NaN
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }
  // N(0, 1) with rows and columns of very different size, a tile of zeros and one below the smallest amax.
  Tensor uneven(int64_t rows, int64_t width) {
    const Tensor tensor = random({rows, width});
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      float& value = tensor.data<float>()[i];
      const int64_t row = i / width;
      const int64_t column = i % width;
      value = std::ldexp(value, static_cast<int>((row * 7 + column / 50 * 5) % 41 - 20));
      if (row == 3) value = column < kTile ? 0.0F : value * 1e-12F;
    }
    return tensor;
  }
  Parameter weight_of(const Tensor& value) {
    Parameter parameter;
    parameter.value = value;
    return parameter;
  }

  Fp8Scale kind = GetParam();
  ThreadPool threads;
  std::unique_ptr<WeightProducts> products = make_fp8_products(kind, {&threads, {}, RowBits::independent});
  std::unique_ptr<Kernels> reference = make_reference_kernels();
  Arena arena{Arena::Mode::real, true};
  uint64_t next_id = 0;
};

TEST_P(Fp8Products, OperandsAreRoundedBitForBit) {
  const Tensor values = uneven(261, 300);
  using Round = void (*)(const float*, int64_t, int64_t, Fp8Scale, float*, float*);
  struct Shape {
    const char* name;
    Round round;
    int64_t rows, width;
  };
  for (const Shape& tile :
       {Shape{"1 x 128", round_tiles_to_fp8, 1, kTile}, Shape{"128 x 1", round_column_tiles_to_fp8, kTile, 1},
        Shape{"128 x 128", round_blocks_to_fp8, kTile, kTile}}) {
    SCOPED_TRACE(tile.name);
    const Rounded expected(arena, values, tile.rows, tile.width, kind);
    std::vector<float> codes(expected.codes.size(), -1.0F);
    std::vector<float> scales(expected.scales.size(), -1.0F);
    tile.round(values.data<float>(), 261, 300, kind, codes.data(), scales.data());
    EXPECT_EQ(bits_of(scales), bits_of(expected.scales));
    EXPECT_EQ(bits_of(codes), bits_of(expected.codes));
  }
}

// fp32 sums of exact products: (terms + 1) u times the sum of their sizes, with one scaling and one addition more for
// each block, and N(0, 1) operands, whose products have a mean size below 1. Twice that for their spread.
TEST_P(Fp8Products, AreThoseOfTheRoundedOperands) {
  constexpr int64_t kOut = 150;
  constexpr int64_t kIn = 300;
  const Tensor value = random({kOut, kIn});
  const Parameter w = weight_of(value);
  const Parameter rounded_w = weight_of(Rounded(arena, value, kTile, kTile, kind).values);
  for (const int64_t rows : {1, 5, 129, 300}) {
    SCOPED_TRACE(rows);
    const auto expect_near = [&](const Tensor& actual, const Tensor& expected, int64_t terms) {
      const double bound = 0x1p-24 * static_cast<double>(terms + 8) * 2.0 * static_cast<double>(terms);
      test::expect_near(test::values_of(actual), test::values_of(expected), bound);
    };
    const Tensor x = random({rows, kIn});
    const Tensor dy = random({rows, kOut});
    const Tensor y = out({rows, kOut});
    const Tensor dx = out({rows, kIn});
    const Tensor dw = out({kOut, kIn});
    const Tensor want_y = arena.take("want", DType::f64, {rows, kOut});
    const Tensor want_dx = arena.take("want", DType::f64, {rows, kIn});
    const Tensor want_dw = arena.take("want", DType::f64, {kOut, kIn});
    products->linear(x, w, y);
    reference->linear(Rounded(arena, x, 1, kTile, kind).values, rounded_w, want_y);
    expect_near(y, want_y, kIn);
    for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
      products->linear_input_grad(dy, w, dx, accumulate);
      reference->linear_input_grad(Rounded(arena, dy, 1, kTile, kind).values, rounded_w, want_dx, accumulate);
      expect_near(dx, want_dx, 2 * kOut);
      products->linear_weight_grad(x, dy, dw, accumulate);
      reference->linear_weight_grad(Rounded(arena, x, kTile, 1, kind).values, Rounded(arena, dy, kTile, 1, kind).values,
                                    want_dw, accumulate);
      expect_near(dw, want_dw, 2 * rows + 2);
    }
  }
}

// A tile of values that are 2^17 times smaller than their neighbours keeps its three bits: with a scale for the whole
// row all of it would be zero.
TEST_P(Fp8Products, ATileHasAScaleOfItsOwn) {
  const Tensor x = random({1, 2 * kTile});
  for (int64_t k = kTile; k < 2 * kTile; ++k) x.data<float>()[k] *= 0x1p17F;
  Parameter w = weight_of(out({1, 2 * kTile}));
  for (int64_t k = 0; k < 2 * kTile; ++k) w.value.data<float>()[k] = k == 5 ? 1.0F : 0.0F;
  const Tensor y = out({1, 1});
  products->linear(x, w, y);
  const double exact = x.data<float>()[5];
  EXPECT_NE(exact, 0.0);
  EXPECT_NEAR(y.data<float>()[0], exact, std::fabs(exact) * (0x1p-4 + 0x1p-20));
}

TEST_P(Fp8Products, FollowTheVersionOfAWeightAndSpreadNan) {
  Parameter w = weight_of(random({24, 40}));
  const Tensor x = random({2, 40});
  const Tensor first = out({2, 24});
  const Tensor second = out({2, 24});
  products->linear(x, w, first);
  test::fill_random(w.value, 1000);
  ++w.version;
  x.data<float>()[40] = std::nanf("");
  products->linear(x, w, second);
  for (int64_t n = 0; n < 24; ++n) {
    EXPECT_NE(first.data<float>()[n], second.data<float>()[n]);
    EXPECT_FALSE(std::isnan(second.data<float>()[n]));
    EXPECT_TRUE(std::isnan(second.data<float>()[24 + n]));
  }
}

INSTANTIATE_TEST_SUITE_P(Scales, Fp8Products, testing::Values(Fp8Scale::fp32, Fp8Scale::ue8m0),
                         [](const auto& instance) { return instance.param == Fp8Scale::fp32 ? "fp32" : "ue8m0"; });

// Logits of the head in fp8 kernels have the bits of fp32; those of a plain linear layer of the same weight do not.
TEST(Fp8, TheHeadKeepsHighPrecision) {
  const auto fp8 = make_cpu_kernels(Precision::fp8);
  const auto fp32 = make_cpu_kernels(Precision::fp32);
  Arena arena;
  Head head("lm_head", 32, 16, 0.02);
  Linear linear("lm_head", 32, 16, 0.02);
  ParameterStore stores[2];
  stores[0].add_all(head);
  stores[1].add_all(linear);
  for (ParameterStore& store : stores) {
    store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false);
    store.initialise(1);
  }
  const Tensor x = test::random_tensor(arena, DType::f32, {4, 32}, 1);
  std::vector<double> results[4];
  int next = 0;
  for (const Kernels* kernels : {fp8.get(), fp32.get()}) {
    Context ctx{*kernels, arena};
    Linear::Saved saved;
    results[next++] = test::values_of(head.logits(ctx, x));
    results[next++] = test::values_of(linear.forward(ctx, x, saved));
  }
  EXPECT_EQ(results[0], results[2]);
  EXPECT_NE(results[1], results[3]);
  EXPECT_EQ(results[2], results[3]);
}

}  // namespace
}  // namespace cadre::fp8_products_test
