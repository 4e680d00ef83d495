// SPDX-License-Identifier: Apache-2.0
// Parts of rows: copies as whole pieces, and the products of latent attention, one for each head.
#include <algorithm>
#include <cstring>

#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/row_products.hpp"

namespace cadre {
namespace {

float* start_of(const Columns& columns, size_t row) {
  return columns.rows.data<float>() + row * cpu::width_of(columns.rows) + columns.first;
}

// The rows of one head in x [T,NH,width].
GemmOperand head_of(const Tensor& x, int64_t head) { return {x.data<float>() + head * x.dim(2), x.dim(1) * x.dim(2)}; }

const float* rows_of_head(const HeadRows& weight, int64_t head) {
  const int64_t group = weight.weight.dim(0) / weight.num_heads;
  return weight.weight.data<float>() + (head * group + weight.first) * weight.weight.dim(1);
}

}  // namespace

void CpuKernels::copy_columns(const Columns& src, const Columns& dst) const {
  const size_t num_rows = cpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  const size_t repeats = num_rows / cpu::num_rows_of(src.rows);
  const size_t bytes = static_cast<size_t>(dst.count) * sizeof(float);
  for (size_t r = 0; r < num_rows; ++r) std::memcpy(start_of(dst, r), start_of(src, r / repeats), bytes);
}

void CpuKernels::sum_columns(const Columns& src, const Columns& dst) const {
  const size_t num_rows = cpu::num_rows_of(dst.rows);
  if (num_rows == 0) return;
  const size_t terms = cpu::num_rows_of(src.rows) / num_rows;
  const auto count = static_cast<size_t>(dst.count);
  for (size_t r = 0; r < num_rows; ++r) {
    float* sum = start_of(dst, r);
    std::copy_n(start_of(src, r * terms), count, sum);
    for (size_t j = 1; j < terms; ++j) {
      const float* term = start_of(src, r * terms + j);
      for (size_t i = 0; i < count; ++i) sum[i] += term[i];
    }
  }
}

void CpuKernels::head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = weight.weight.dim(1);
  for (int64_t head = 0; head < weight.num_heads; ++head) {
    row_gemm({x.dim(0), weight.count, width, poller_}, head_of(x, head),
             {rows_of_head(weight, head), width, /*transposed=*/true}, y.data<float>() + head * y.dim(2),
             y.dim(1) * y.dim(2));
  }
}

void CpuKernels::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = weight.weight.dim(1);
  for (int64_t head = 0; head < weight.num_heads; ++head) {
    row_gemm({x.dim(0), width, weight.count, poller_}, head_of(x, head), {rows_of_head(weight, head), width},
             y.data<float>() + head * y.dim(2), y.dim(1) * y.dim(2));
  }
}

}  // namespace cadre
