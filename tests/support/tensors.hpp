// SPDX-License-Identifier: Apache-2.0
// Small tensors for tests: filled by value or with random numbers, read back as doubles.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "comm/base/random.hpp"
#include "layers/tensor/arena.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre::test {

// Any element type; i32 takes the integer part.
inline void put_element(const Tensor& tensor, int64_t i, double value) {
  switch (tensor.dtype()) {
    case DType::f32: tensor.data<float>()[i] = static_cast<float>(value); return;
    case DType::f64: tensor.data<double>()[i] = value; return;
    case DType::i32: tensor.data<int32_t>()[i] = static_cast<int32_t>(value); return;
    default: FAIL() << "put_element of " << tensor.describe();
  }
}

inline std::vector<double> values_of(const Tensor& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.numel()));
  for (size_t i = 0; i < values.size(); ++i) {
    switch (tensor.dtype()) {
      case DType::f32: values[i] = tensor.data<float>()[i]; break;
      case DType::f64: values[i] = tensor.data<double>()[i]; break;
      case DType::i32: values[i] = tensor.data<int32_t>()[i]; break;
      default: ADD_FAILURE() << "values_of " << tensor.describe();
    }
  }
  return values;
}

inline Tensor tensor_of(Arena& arena, DType dtype, std::initializer_list<int64_t> shape,
                        const std::vector<double>& values) {
  const Tensor tensor = arena.take("test", dtype, shape);
  EXPECT_EQ(tensor.numel(), static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) put_element(tensor, static_cast<int64_t>(i), values[i]);
  return tensor;
}

// Fills with scale N(0, 1); `id` tells one tensor of a test from the next.
inline void fill_random(const Tensor& tensor, uint64_t id, double scale = 1.0) {
  const Random random(0, "test", id);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    put_element(tensor, i, scale * random.normal(static_cast<uint64_t>(i)));
  }
}

inline Tensor random_tensor(Arena& arena, DType dtype, std::initializer_list<int64_t> shape, uint64_t id) {
  const Tensor tensor = arena.take("test", dtype, shape);
  fill_random(tensor, id);
  return tensor;
}

// NaN in every element (-1 in i32), so that an element nobody writes shows.
inline void poison(const Tensor& tensor) {
  if (tensor.bytes() > 0) std::memset(tensor.raw(), 0xff, tensor.bytes());
}

inline double dot(const Tensor& a, const Tensor& b) {
  const std::vector<double> left = values_of(a);
  const std::vector<double> right = values_of(b);
  EXPECT_EQ(left.size(), right.size());
  double sum = 0.0;
  for (size_t i = 0; i < left.size(); ++i) sum += left[i] * right[i];
  return sum;
}

// Element-wise |a - b| <= tolerance; a NaN fails.
inline void expect_near(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], tolerance) << "element " << i;
}

}  // namespace cadre::test
