// SPDX-License-Identifier: Apache-2.0
// Normal values drawn several at a time have the bits of those drawn one by one.
#include "layers/tensor/normal_values.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace cadre::normal_values_test {
namespace {

TEST(FillNormal, HasTheBitsOfTheScalarFunction) {
  for (const double scale : {0.02, 1.0, 3e-40}) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{255}, size_t{257}, size_t{1} << 20}) {
      const Random random(11, "init", size);
      std::vector<float> values(size);
      fill_normal(random, scale, values);
      size_t different = 0;
      for (size_t i = 0; i < size; ++i) different += values[i] != static_cast<float>(scale * random.normal(i)) ? 1 : 0;
      EXPECT_EQ(different, 0U) << scale << ", " << size;
    }
  }
}

// Where a value lies halfway between two floats the last bit of a double decides, in which vectors err.
TEST(FillNormal, HasTheBitsOfTheScalarFunctionBetweenTwoFloats) {
  constexpr size_t kSize = 256;
  const Random random(11, "init", 0);
  std::vector<float> values(kSize);
  size_t different = 0;
  for (size_t i = 0; i < kSize; ++i) {
    const double unscaled = random.normal(i);
    const auto below = static_cast<float>(0.02 * unscaled);
    const double halfway = (double{below} + double{std::nextafter(below, 1.0F)}) / 2;
    const double scale = halfway / unscaled;
    fill_normal(random, scale, values);
    different += values[i] != static_cast<float>(scale * unscaled) ? 1 : 0;
  }
  EXPECT_EQ(different, 0U);
}

}  // namespace
}  // namespace cadre::normal_values_test
