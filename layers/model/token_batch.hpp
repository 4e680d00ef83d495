// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "layers/nn/attention.hpp"

namespace cadre {

// The tokens of one micro-batch on this rank: ids and targets i32[T], T = batch * length; a target of -1 has no loss.
struct TokenBatch {
  Tensor ids;
  Tensor targets;
  Sequences sequences;
  Tensor weights = {};  // f32[T] in host memory, of the loss of each target; undefined: all are 1
};

}  // namespace cadre
