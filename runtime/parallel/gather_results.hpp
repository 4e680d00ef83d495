// SPDX-License-Identifier: Apache-2.0
// Tensors whose rows are spread over ranks come together on rank 0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/dtype.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

struct ResultTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  Buffer memory;
};

// Rows [first_row, first_row + bytes / row bytes) of the tensor, where rows are its first axis.
struct ResultPiece {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // of the whole tensor
  int64_t first_row = 0;
  Buffer memory;
};

// Collective. Rank 0 gets every tensor that some rank has a piece of, in order of name; all rows must be there once.
std::vector<ResultTensor> gather_results(const Worker& worker, std::vector<ResultPiece> mine);

}  // namespace cadre
