// SPDX-License-Identifier: Apache-2.0
// The loss against experts that say the same, against numbers from fp64 arithmetic outside of the program (NumPy).
#include "layers/moe/diversity.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace cadre::diversity_test {
namespace {

// Outputs of three, one, two and no experts of four tokens.
std::vector<double> outputs = {1.0, 2.0, -1.0, 0.5, -1.0, 2.0, 3.0,  0.0,  1.0,
                               2.0, 1.0, 1.0,  1.0, -1.0, 0.5, -2.0, 0.25, 1.5};
const std::vector<int32_t> offsets = {0, 3, 4, 6, 6};

Tensor view(std::vector<double>& values) { return {values.data(), DType::f64, {6, 3}}; }

// sum over tokens of 2 / (n (n - 1)) sum_{i<j} y_i . y_j / (|y_i| |y_j|)
TEST(Diversity, is_the_mean_cosine_of_two_outputs_of_a_token) {
  EXPECT_NEAR(diversity_loss(view(outputs), offsets), -0.358803137143, 1e-12);
  std::vector<double> alike = {1, 2, 3, 2, 4, 6, -1, -2, -3};
  const std::vector<int32_t> pair = {0, 2}, three = {0, 3};
  EXPECT_NEAR(diversity_loss(Tensor(alike.data(), DType::f64, {3, 3}), pair), 1.0, 1e-15);
  EXPECT_NEAR(diversity_loss(Tensor(alike.data(), DType::f64, {3, 3}), three), -1.0 / 3.0, 1e-15);
}

// dL/dy_i = 2 / (n (n - 1)) sum_{j!=i} (y_j / (|y_i| |y_j|) - (y_i . y_j) y_i / (|y_i|^3 |y_j|))
TEST(Diversity, has_its_gradient_by_every_output) {
  const std::vector<double> expected = {0.179095731459,
                                        -0.018790201012,
                                        0.141515329435,
                                        0.201866837783,
                                        0.109858096537,
                                        0.004462338823,
                                        -0.008089144526,
                                        0.04006192596,
                                        0.024267433578,
                                        0.0,
                                        0.0,
                                        0.0,
                                        -0.353791000964,
                                        -0.110559687801,
                                        0.486462626325,
                                        0.139239527607,
                                        -0.249580285333,
                                        0.227249417698};
  std::vector<double> grads(18, 99.0);
  diversity_grad(2.0, view(outputs), offsets, view(grads));
  for (size_t i = 0; i < 6; ++i) {
    for (size_t h = 0; h < 3; ++h) {
      EXPECT_NEAR(grads[i * 3 + h], 2.0 * expected[i * 3 + h], 1e-11) << i << ' ' << h;
    }
  }
}

TEST(Diversity, leaves_an_output_of_zero_alone) {
  std::vector<double> some = {0, 0, 0, 1, 0, 0};
  const std::vector<int32_t> pair = {0, 2};
  std::vector<double> grads(6, 99.0);
  const Tensor rows(some.data(), DType::f64, {2, 3});
  EXPECT_EQ(diversity_loss(rows, pair), 0.0);
  diversity_grad(1.0, rows, pair, Tensor(grads.data(), DType::f64, {2, 3}));
  EXPECT_EQ(grads, std::vector<double>(6, 0.0));
}

}  // namespace
}  // namespace cadre::diversity_test
