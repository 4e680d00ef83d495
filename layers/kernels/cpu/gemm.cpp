// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu/gemm.hpp"

#include <cblas.h>

#include <algorithm>
#include <limits>

#include "comm/base/check.hpp"
#include "layers/kernels/cpu/onednn_gemm.hpp"

namespace cadre {
namespace {

blasint blas_int(int64_t extent) {
  CADRE_ASSERT(extent >= 0 && extent <= std::numeric_limits<blasint>::max());
  return static_cast<blasint>(extent);
}

// BLAS asks for strides of at least one element, also of matrices without columns.
blasint blas_stride(int64_t stride) { return std::max<blasint>(1, blas_int(stride)); }

void scale_matrix(const GemmShape& shape, float* c, int64_t c_stride, float beta) {
  for (int64_t row = 0; row < shape.m; ++row) {
    float* begin = c + row * c_stride;
    for (int64_t i = 0; i < shape.n; ++i) begin[i] = beta == 0.0F ? 0.0F : beta * begin[i];
  }
}

// One row: a matrix-vector product, several times faster than sgemm with m = 1.
void gemv(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, float alpha, float beta) {
  const blasint a_increment = a.transposed ? blas_stride(a.stride) : 1;
  const int64_t stored_rows = b.transposed ? shape.n : shape.k;
  const int64_t stored_columns = b.transposed ? shape.k : shape.n;
  cblas_sgemv(CblasRowMajor, b.transposed ? CblasNoTrans : CblasTrans, blas_int(stored_rows), blas_int(stored_columns),
              alpha, b.data, blas_stride(b.stride), a.data, a_increment, beta, c, 1);
}

void multiply(GemmLibrary library, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c,
              int64_t c_stride, float alpha, float beta) {
  if (library == GemmLibrary::onednn) return onednn_gemm(shape, a, b, c, c_stride, alpha, beta);
  cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans, b.transposed ? CblasTrans : CblasNoTrans,
              blas_int(shape.m), blas_int(shape.n), blas_int(shape.k), alpha, a.data, blas_stride(a.stride), b.data,
              blas_stride(b.stride), beta, c, blas_stride(c_stride));
}

// A tile of this size takes 0.2 to 0.5 ms on one core and is, with 256 rows and 128 columns, within a few percent of the speed
// of the whole product.
constexpr int64_t kTileRows = 256;
constexpr int64_t kFewestColumns = 128;
constexpr double kTileFlops = 3e7;

// Of `count` in all, in even shares of at most `most`, multiples of 16 but for the last.
int64_t even_share(int64_t count, int64_t most) {
  const int64_t parts = (count + most - 1) / most;
  return ((count + parts - 1) / parts + 15) / 16 * 16;
}

int64_t most_columns(int64_t rows, int64_t k) {
  const double columns = kTileFlops / (2.0 * static_cast<double>(rows) * static_cast<double>(k));
  return std::max<int64_t>(kFewestColumns, static_cast<int64_t>(std::min(columns, 1e6)) / 64 * 64);
}

const float* at_row(const GemmOperand& a, int64_t row) { return a.data + (a.transposed ? row : row * a.stride); }
const float* at_column(const GemmOperand& b, int64_t column) {
  return b.data + (b.transposed ? column * b.stride : column);
}

}  // namespace

void gemm(GemmLibrary library, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c,
          int64_t c_stride, float alpha, float beta) {
  if (shape.m == 0 || shape.n == 0) return;
  if (shape.k == 0) return scale_matrix(shape, c, c_stride, beta);
  if (shape.m == 1) return gemv(shape, a, b, c, alpha, beta);
  const int64_t rows = even_share(shape.m, kTileRows);
  const int64_t columns = even_share(shape.n, most_columns(std::min(shape.m, rows), shape.k));
  const int64_t tiles_in_row = (shape.n + columns - 1) / columns;
  const auto tile = [&](int64_t index) {
    const int64_t row = index / tiles_in_row * rows;
    const int64_t column = index % tiles_in_row * columns;
    multiply(library, {std::min(rows, shape.m - row), std::min(columns, shape.n - column), shape.k},
             {at_row(a, row), a.stride, a.transposed}, {at_column(b, column), b.stride, b.transposed},
             c + row * c_stride + column, c_stride, alpha, beta);
  };
  const int64_t num_tiles = (shape.m + rows - 1) / rows * tiles_in_row;
  if (shape.threads != nullptr) return shape.threads->run(num_tiles, tile);
  for (int64_t i = 0; i < num_tiles; ++i) tile(i);
}

std::string blas_core_name() { return openblas_get_corename(); }

void use_one_library_thread() { openblas_set_num_threads(1); }

}  // namespace cadre
