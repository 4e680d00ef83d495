// SPDX-License-Identifier: Apache-2.0
#include "layers/tensor/tensor.hpp"

#include <cstring>

namespace cadre {

Tensor::Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape) : data_(data), dtype_(dtype) {
  CADRE_CHECK(shape.size() >= 1 && shape.size() <= kMaxDims,
              fmt::format("a tensor has 1 to {} axes, not {}", kMaxDims, shape.size()));
  for (const int64_t extent : shape) {
    CADRE_CHECK(extent >= 0, fmt::format("a tensor axis has extent {}", extent));
    shape_[static_cast<size_t>(num_dims_++)] = extent;
  }
}

int64_t Tensor::numel() const { return num_dims_ == 0 ? 0 : dim(0) * row_numel(); }

int64_t Tensor::row_numel() const {
  int64_t product = 1;
  for (int axis = 1; axis < num_dims_; ++axis) product *= dim(axis);
  return product;
}

Tensor Tensor::rows(int64_t first, int64_t count) const {
  CADRE_ASSERT(first >= 0 && count >= 0 && first + count <= dim(0));
  Tensor view = *this;
  view.shape_[0] = count;
  if (data_ != nullptr) view.data_ = raw() + static_cast<size_t>(first) * row_bytes();
  return view;
}

Tensor Tensor::reshape(std::initializer_list<int64_t> shape) const {
  const Tensor view(data_, dtype_, shape);
  CADRE_CHECK(view.numel() == numel(), fmt::format("{} cannot be seen as {}", describe(), view.describe()));
  return view;
}

Tensor Tensor::with_memory(void* data, DType dtype) const {
  Tensor view = *this;
  view.data_ = data;
  view.dtype_ = dtype;
  return view;
}

bool Tensor::same_shape(const Tensor& other) const { return num_dims_ == other.num_dims_ && shape_ == other.shape_; }

std::string Tensor::describe() const {
  std::string text = std::string(name_of(dtype_)) + "[";
  for (int axis = 0; axis < num_dims_; ++axis) text += fmt::format("{}{}", axis == 0 ? "" : ",", dim(axis));
  return text + "]";
}

void Tensor::fill_zero() const {
  if (data_ != nullptr) std::memset(data_, 0, bytes());
}

void Tensor::fail_dtype(DType wanted) const {
  throw Error(ErrorKind::internal, fmt::format("tensor {} read as {}", describe(), name_of(wanted)));
}

}  // namespace cadre
