// SPDX-License-Identifier: Apache-2.0
// A view of contiguous, row-major elements: pointer, element type, shape. It owns nothing; an Arena does.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/base/dtype.hpp"

namespace cadre {

class Tensor {
 public:
  static constexpr int kMaxDims = 4;

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape);

  DType dtype() const { return dtype_; }
  int num_dims() const { return num_dims_; }
  int64_t dim(int axis) const { return shape_[static_cast<size_t>(axis)]; }
  int64_t numel() const;
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  // Elements and bytes of one step along the first axis.
  int64_t row_numel() const;
  size_t row_bytes() const { return static_cast<size_t>(row_numel()) * size_of(dtype_); }
  bool defined() const { return num_dims_ > 0; }

  std::byte* raw() const { return static_cast<std::byte*>(data_); }

  // Throws when T is not the element type.
  template <class T>
  T* data() const {
    if (dtype_of<T> != dtype_) fail_dtype(dtype_of<T>);
    return static_cast<T*>(data_);
  }

  // Rows [first, first + count) along the first axis.
  Tensor rows(int64_t first, int64_t count) const;
  // The same elements in another shape; numel must agree.
  Tensor reshape(std::initializer_list<int64_t> shape) const;
  // The same shape over other memory.
  Tensor with_memory(void* data, DType dtype) const;

  bool same_shape(const Tensor& other) const;
  std::string describe() const;  // "f32[128,512]"

  void fill_zero() const;

 private:
  [[noreturn]] void fail_dtype(DType wanted) const;

  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  int num_dims_ = 0;
  std::array<int64_t, kMaxDims> shape_{};
};

// Rows of equal width anywhere in memory: row i starts at base + i * stride. Rows may overlap, so that one base and one
// index reach the rows of several tensors. A tensor is the case without gaps.
struct Rows {
  const std::byte* base = nullptr;
  int64_t stride = 0;  // bytes, whole elements
  DType dtype = DType::f32;
  int64_t width = 0;

  Rows(const std::byte* base_of_rows, int64_t stride_bytes, DType element, int64_t elements)
      : base(base_of_rows), stride(stride_bytes), dtype(element), width(elements) {}
  Rows(const Tensor& tensor)  // NOLINT(google-explicit-constructor): a tensor is rows
      : base(tensor.raw()),
        stride(static_cast<int64_t>(tensor.row_bytes())),
        dtype(tensor.dtype()),
        width(tensor.row_numel()) {}

  template <class T>
  const T* row(int64_t i) const {
    CADRE_ASSERT(dtype_of<T> == dtype);
    return reinterpret_cast<const T*>(base + i * stride);
  }
};

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

// A tensor for the host to read and write, wherever it is: itself, or a copy.

class OnHost {
 public:
  // Of `memory`. Waits for what writes it.
  OnHost(const Tensor& tensor, Memory& memory) : of_(tensor), memory_(memory), here_(tensor) {
    if (tensor.raw() == nullptr || memory.is_on_host()) {
      memory.synchronize();
      return;
    }
    copy_ = Buffer(tensor.bytes());
    here_ = tensor.with_memory(copy_.data(), tensor.dtype());
    memory.read(copy_.data(), tensor.raw(), tensor.bytes());
  }

  const Tensor& operator*() const { return here_; }
  const Tensor* operator->() const { return &here_; }
  // After it was written.
  void put_back() {
    if (!copy_.empty()) memory_.write(of_.raw(), copy_.data(), copy_.bytes());
  }

 private:
  Tensor of_;
  Memory& memory_;
  Buffer copy_;
  Tensor here_;
};

}  // namespace cadre
