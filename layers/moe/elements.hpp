// SPDX-License-Identifier: Apache-2.0
// From what an exchange takes and gives to what kernels read: rows by base and stride, indices as tensors.
#pragma once

#include <span>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// Indices as a tensor; whoever made them keeps the memory.
inline Tensor index_tensor(std::span<const int32_t> index) {
  return {const_cast<int32_t*>(index.data()), DType::i32, {static_cast<int64_t>(index.size())}};
}

inline Rows rows_of(const Elements& elements, DType dtype, int64_t width) {
  return {elements.base, static_cast<int64_t>(elements.stride), dtype, width};
}

inline Elements elements_of(const Tensor& rows, std::span<const int32_t> index = {}) {
  return {rows.raw(), rows.row_bytes(), index};
}

// Which of the elements are those at `places`: the index of an index.
inline std::vector<int32_t> through(const Elements& elements, const std::vector<int32_t>& places) {
  if (elements.index.empty()) return places;
  std::vector<int32_t> index;
  index.reserve(places.size());
  for (const int32_t place : places) index.push_back(elements.index[place]);
  return index;
}

}  // namespace cadre
