// SPDX-License-Identifier: Apache-2.0
// Reference of what latent attention does with parts of rows.
#include "layers/kernels/reference/reference.hpp"

namespace cadre {
namespace {

template <class T>
T* start_of(const Columns& columns, int64_t row) {
  return columns.rows.data<T>() + row * reference::last_dim(columns.rows) + columns.first;
}

}  // namespace

using reference::dispatch;
using reference::last_dim;
using reference::num_last_rows;

void ReferenceKernels::copy_columns(const Columns& src, const Columns& dst) const {
  const int64_t num_rows = num_last_rows(dst.rows);
  if (num_rows == 0) return;
  const int64_t repeats = num_rows / num_last_rows(src.rows);
  dispatch(dst.rows, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t i = 0; i < dst.count; ++i) start_of<T>(dst, r)[i] = start_of<T>(src, r / repeats)[i];
    }
  });
}

void ReferenceKernels::sum_columns(const Columns& src, const Columns& dst) const {
  const int64_t num_rows = num_last_rows(dst.rows);
  if (num_rows == 0) return;
  const int64_t terms = num_last_rows(src.rows) / num_rows;
  dispatch(dst.rows, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t i = 0; i < dst.count; ++i) {
        double sum = 0.0;
        for (int64_t j = 0; j < terms; ++j) sum += double{start_of<T>(src, r * terms + j)[i]};
        start_of<T>(dst, r)[i] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = last_dim(weight.weight);
  const int64_t rows_of_head = weight.weight.dim(0) / weight.num_heads;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_last_rows(x); ++r) {
      const int64_t first_row = r % weight.num_heads * rows_of_head + weight.first;
      for (int64_t i = 0; i < weight.count; ++i) {
        double sum = 0.0;
        for (int64_t k = 0; k < width; ++k) {
          sum +=
              double{x.data<T>()[r * last_dim(x) + k]} * double{weight.weight.data<T>()[(first_row + i) * width + k]};
        }
        y.data<T>()[r * last_dim(y) + i] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = last_dim(weight.weight);
  const int64_t rows_of_head = weight.weight.dim(0) / weight.num_heads;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_last_rows(x); ++r) {
      const int64_t first_row = r % weight.num_heads * rows_of_head + weight.first;
      for (int64_t k = 0; k < width; ++k) {
        double sum = 0.0;
        for (int64_t i = 0; i < weight.count; ++i) {
          sum +=
              double{x.data<T>()[r * last_dim(x) + i]} * double{weight.weight.data<T>()[(first_row + i) * width + k]};
        }
        y.data<T>()[r * last_dim(y) + k] = static_cast<T>(sum);
      }
    }
  });
}

}  // namespace cadre
