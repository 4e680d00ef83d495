// SPDX-License-Identifier: Apache-2.0
// Products with a weight in every precision and library of the CPU back end, against fp64 sums of the same operands.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::cpu_products_test {
namespace {

struct Backend {
  const char* name;
  RowBits bits;
  const char* products;
  std::unique_ptr<WeightProducts> (*make)(const ProductSettings& settings);
  bool rounds_operands;
};

std::unique_ptr<WeightProducts> make_fp32(const ProductSettings& settings) { return make_fp32_products(settings); }
std::unique_ptr<WeightProducts> make_rounded(const ProductSettings& settings) {
  return make_fp32_products(settings, /*rounds=*/true);
}
constexpr char kCopies[] = "nt=bbbb nn=bbbb tn=bbbb copy=1111";

constexpr Backend kBackends[] = {
    {"fp32", RowBits::independent, "openblas", make_fp32, false},
    {"fp32_as_in_training", RowBits::as_in_training, "openblas", make_fp32, false},
    {"fp32_with_copies", RowBits::as_in_training, kCopies, make_fp32, false},
    {"fp32_onednn", RowBits::as_in_training, "onednn", make_fp32, false},
    {"fp32_onednn_packed", RowBits::as_in_training, "onednn-packed", make_fp32, false},
    {"bf16", RowBits::independent, "openblas", make_bf16_products, true},
    {"bf16_rounded", RowBits::independent, "openblas", make_rounded, true},
    {"bf16_rounded_with_copies", RowBits::as_in_training, kCopies, make_rounded, true},
};

std::vector<Backend> with_libraries() {
  std::vector<Backend> all;
  for (const Backend& each : kBackends) {
    if (has_onednn() || !std::string_view(each.products).starts_with("onednn")) all.push_back(each);
  }
  return all;
}

class Products : public testing::TestWithParam<Backend> {
 protected:
  Tensor out(std::initializer_list<int64_t> shape) { return arena.take("out", DType::f32, shape); }  // NaN
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }
  Parameter weight(int64_t width_out, int64_t width_in, bool trains) {
    Parameter parameter;
    parameter.value = random({width_out, width_in});
    if (trains) parameter.grad = out({width_out, width_in});
    return parameter;
  }
  // What the back end multiplies: the tensor, or its bf16 values.
  Tensor operand(const Tensor& tensor) {
    if (!GetParam().rounds_operands) return tensor;
    const Tensor rounded = out({tensor.dim(0), tensor.dim(1)});
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      rounded.data<float>()[i] = to_float(to_bf16(tensor.data<float>()[i]));
    }
    return rounded;
  }
  Parameter operand(const Parameter& parameter) {
    Parameter rounded;
    rounded.value = operand(parameter.value);
    return rounded;
  }

  // Sums of `terms` products of N(0, 1) numbers in fp32, in any order: (terms + 1) u times the sum of their sizes,
  // which is below 2 terms; one more addition when accumulating.
  void expect_sums(const Tensor& actual, const Tensor& expected, int64_t terms) {
    const double bound = 0x1p-24 * static_cast<double>(terms + 2) * 2.0 * static_cast<double>(terms + 2);
    test::expect_near(test::values_of(actual), test::values_of(expected), bound);
  }

  ThreadPool threads;
  std::unique_ptr<WeightProducts> products =
      GetParam().make({&threads, ProductChoice::parse(GetParam().products, "products"), GetParam().bits});
  std::unique_ptr<Kernels> reference = make_reference_kernels();
  Arena arena{Arena::Mode::real, true};
  uint64_t next_id = 0;
};

TEST_P(Products, EqualTheReference) {
  constexpr int64_t kOut = 70;
  constexpr int64_t kIn = 37;
  for (const bool trains : {false, true}) {
    const Parameter w = weight(kOut, kIn, trains);
    for (const int64_t rows : {1, 2, 15, 16, 17, 63, 64, 100}) {
      SCOPED_TRACE(rows);
      const Tensor x = random({rows, kIn});
      const Tensor y[] = {out({rows, kOut}), out({rows, kOut})};
      products->linear(x, w, y[0]);
      reference->linear(operand(x), operand(w), y[1]);
      expect_sums(y[0], y[1], kIn);

      const Tensor dy = random({rows, kOut});
      const Tensor dx[] = {out({rows, kIn}), out({rows, kIn})};
      const Tensor dw[] = {out({kOut, kIn}), out({kOut, kIn})};
      for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
        products->linear_input_grad(dy, w, dx[0], accumulate);
        reference->linear_input_grad(operand(dy), operand(w), dx[1], accumulate);
        expect_sums(dx[0], dx[1], 2 * kOut);
        products->linear_weight_grad(x, dy, dw[0], accumulate);
        reference->linear_weight_grad(operand(x), operand(dy), dw[1], accumulate);
        expect_sums(dw[0], dw[1], 2 * rows);
      }
    }
  }
}

// bf16 keeps 8 bits: each operand moves by at most 2^-9 of itself, a product by 2^-8, and the fixture must show it.
TEST_P(Products, KeepThePromisedPrecision) {
  const Parameter w = weight(64, 256, true);
  const Tensor x = random({100, 256});
  const Tensor y = out({100, 64});
  const Tensor exact = out({100, 64});
  products->linear(x, w, y);
  reference->linear(x, w, exact);
  double largest = 0.0;
  for (int64_t t = 0; t < 100; ++t) {
    for (int64_t n = 0; n < 64; ++n) {
      double sizes = 0.0;
      for (int64_t k = 0; k < 256; ++k) {
        sizes += std::abs(double{x.data<float>()[t * 256 + k]} * double{w.value.data<float>()[n * 256 + k]});
      }
      const double relative =
          std::abs(double{y.data<float>()[t * 64 + n]} - double{exact.data<float>()[t * 64 + n]}) / sizes;
      largest = std::max(largest, relative);
    }
  }
  if (GetParam().rounds_operands) {
    EXPECT_LE(largest, 0x1p-8 + 0x1p-15);  // and the fp32 sum of 256 terms
    EXPECT_GE(largest, 0x1p-14);
  } else {
    EXPECT_LE(largest, 256 * 0x1p-24);
  }
}

TEST_P(Products, FollowTheVersionOfAWeight) {
  Parameter w = weight(24, 40, false);
  const Tensor x = random({5, 40});
  const Tensor dy = random({5, 24});
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    const Tensor y[] = {out({5, 24}), out({5, 24})};
    const Tensor dx[] = {out({5, 40}), out({5, 40})};
    products->linear(x, w, y[0]);
    products->linear_input_grad(dy, w, dx[0], Accumulate::no);
    reference->linear(operand(x), operand(w), y[1]);
    reference->linear_input_grad(operand(dy), operand(w), dx[1], Accumulate::no);
    expect_sums(y[0], y[1], 40);
    expect_sums(dx[0], dx[1], 24);
    test::fill_random(w.value, 1000 + static_cast<uint64_t>(round));
    ++w.version;
  }
}

TEST_P(Products, AreTheSameEveryTimeAndInEveryThread) {
  const Tensor x = random({83, 129});
  const Tensor dy = random({83, 65});
  const Tensor value = random({65, 129});
  constexpr int kRuns = 4;
  std::vector<std::vector<Tensor>> results(kRuns);
  for (auto& tensors : results) tensors = {out({83, 65}), out({83, 129}), out({65, 129})};
  const auto run = [&](const std::vector<Tensor>& into) {
    Parameter w;
    w.value = value;
    products->linear(x, w, into[0]);
    products->linear_input_grad(dy, w, into[1], Accumulate::no);
    products->linear_weight_grad(x, dy, into[2], Accumulate::no);
  };
  run(results[0]);
  run(results[1]);
  std::thread first([&] { run(results[2]); });
  std::thread second([&] { run(results[3]); });
  first.join();
  second.join();
  for (int i = 1; i < kRuns; ++i) {
    for (size_t t = 0; t < 3; ++t) {
      const Tensor& expected = results[0][t];
      EXPECT_EQ(std::memcmp(results[static_cast<size_t>(i)][t].raw(), expected.raw(), expected.bytes()), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Products, testing::ValuesIn(with_libraries()),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(CpuProducts, BackEndsTakeTurnsOnOneWeight) {
  Arena arena;
  Parameter w;
  w.value = test::random_tensor(arena, DType::f32, {33, 20}, 1);
  const Tensor x = test::random_tensor(arena, DType::f32, {4, 20}, 2);
  const auto fp32 = make_cpu_kernels(Precision::fp32);
  const auto bf16 = make_cpu_kernels(Precision::bf16);
  const Tensor first[] = {arena.take("y", DType::f32, {4, 33}), arena.take("y", DType::f32, {4, 33})};
  const Tensor again[] = {arena.take("y", DType::f32, {4, 33}), arena.take("y", DType::f32, {4, 33})};
  fp32->linear(x, w, first[0]);
  bf16->linear(x, w, first[1]);
  fp32->linear(x, w, again[0]);
  bf16->linear(x, w, again[1]);
  EXPECT_EQ(test::values_of(first[0]), test::values_of(again[0]));
  EXPECT_EQ(test::values_of(first[1]), test::values_of(again[1]));
  EXPECT_NE(test::values_of(first[0]), test::values_of(first[1]));
}

TEST(CpuProducts, NoRows) {
  Arena arena;
  Parameter w;
  w.value = test::random_tensor(arena, DType::f32, {8, 6}, 1);
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    const auto kernels = make_cpu_kernels(precision);
    const Tensor x = arena.take("x", DType::f32, {0, 6});
    const Tensor dy = arena.take("dy", DType::f32, {0, 8});
    const Tensor dw = test::random_tensor(arena, DType::f32, {8, 6}, 2);
    const std::vector<double> before = test::values_of(dw);
    kernels->linear(x, w, dy);
    kernels->linear_input_grad(dy, w, x, Accumulate::no);
    kernels->linear_weight_grad(x, dy, dw, Accumulate::yes);
    EXPECT_EQ(test::values_of(dw), before);
    kernels->linear_weight_grad(x, dy, dw, Accumulate::no);
    EXPECT_EQ(test::values_of(dw), std::vector<double>(48, 0.0));
  }
}

TEST(CpuProducts, VectorRoundingEqualsScalarRounding) {
  std::vector<float> values;
  for (uint32_t upper = 0; upper < 0x10000U;
       ++upper) {  // every bf16 and what lies at and beside the middle to the next
    for (const uint32_t lower : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      values.push_back(std::bit_cast<float>((upper << 16) | lower));
    }
  }
  values.push_back(1.5F);  // an odd count
  std::vector<bf16> rounded(values.size());
  std::vector<float> through(values.size());
  round_to_bf16(values.data(), rounded.data(), values.size());
  round_through_bf16(values.data(), through.data(), values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const bf16 expected = to_bf16(values[i]);
    ASSERT_EQ(rounded[i].bits, expected.bits) << "value " << values[i];
    ASSERT_EQ(std::bit_cast<uint32_t>(through[i]), uint32_t{expected.bits} << 16) << "value " << values[i];
  }
}

}  // namespace
}  // namespace cadre::cpu_products_test
