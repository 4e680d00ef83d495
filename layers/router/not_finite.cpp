// SPDX-License-Identifier: Apache-2.0
#include "layers/router/not_finite.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "layers/tensor/tensor.hpp"

namespace cadre {

std::vector<int64_t> rows_not_finite(const Tensor& x) {
  std::vector<int64_t> rows;
  with_element_type(x, [&]<class T>(std::type_identity<T>) {
    const int64_t width = x.dim(1);
    for (int64_t t = 0; t < x.dim(0); ++t) {
      const T* row = x.data<T>() + t * width;
      T largest = 0;
      bool has_nan = false;
      for (int64_t i = 0; i < width; ++i) {
        largest = std::max(largest, std::abs(row[i]));
        has_nan = has_nan || row[i] != row[i];
      }
      if (has_nan || largest > std::numeric_limits<T>::max()) rows.push_back(t);
    }
  });
  return rows;
}

void zero_rows(const std::vector<int64_t>& rows, const Tensor& x) {
  for (const int64_t t : rows) x.rows(t, 1).fill_zero();
}

// All bits set are a NaN of any type.
void fill_with_nan(const std::vector<int64_t>& rows, const Tensor& x, Memory& memory) {
  for (const int64_t t : rows) memory.fill(x.rows(t, 1).raw(), std::byte{0xff}, x.row_bytes());
}

}  // namespace cadre
