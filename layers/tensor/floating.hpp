// SPDX-License-Identifier: Apache-2.0
// One body of code for the two element types that are computed with.
#pragma once

#include <type_traits>
#include <utility>

#include "layers/tensor/tensor.hpp"

namespace cadre {

// Calls `body(std::type_identity<T>{})` with T the element type of `tensor`: float or double.
template <class Body>
void with_element_type(const Tensor& tensor, Body&& body) {
  if (tensor.dtype() == DType::f64) return std::forward<Body>(body)(std::type_identity<double>{});
  std::forward<Body>(body)(std::type_identity<float>{});
}

// Element i, whatever its type.
inline double element(const Tensor& tensor, int64_t i) {
  return tensor.dtype() == DType::f64 ? tensor.data<double>()[i] : static_cast<double>(tensor.data<float>()[i]);
}
inline void set_element(const Tensor& tensor, int64_t i, double value) {
  if (tensor.dtype() == DType::f64) {
    tensor.data<double>()[i] = value;
  } else {
    tensor.data<float>()[i] = static_cast<float>(value);
  }
}

}  // namespace cadre
