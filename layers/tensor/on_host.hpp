// SPDX-License-Identifier: Apache-2.0
// A tensor for the host to read and write, wherever it is: itself, or a copy.
#pragma once

#include "comm/base/buffer.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

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
