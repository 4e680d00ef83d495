// SPDX-License-Identifier: Apache-2.0
// Rows that hold a NaN or an infinity, where numbers decide which way a token goes.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// Those of x [T,N], ascending.
std::vector<int64_t> rows_not_finite(const Tensor& x);
// Sets these rows of x [T,N] to zero, so that what decides finds numbers.
void zero_rows(const std::vector<int64_t>& rows, const Tensor& x);
// Overwrites these rows of x [T,N], a result in `memory`, with NaN.
void fill_with_nan(const std::vector<int64_t>& rows, const Tensor& x, Memory& memory);

}  // namespace cadre
