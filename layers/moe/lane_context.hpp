// SPDX-License-Identifier: Apache-2.0
// What a module needs when it talks to other ranks: the context of its micro-batch, and the lane that carries it.
#pragma once

#include "comm/exchange/exchange.hpp"
#include "comm/progress/task.hpp"
#include "layers/nn/module.hpp"

namespace cadre {

// How results come home. partial: one weighted sum per (token, rank), the fewest bytes. slot_order: one row per slot,
// added in top-k order on the token's rank: the same bits however the experts are spread. An exchange that reads rows in
// place always does the latter, because that moves less than making sums first.
enum class CombineMode { partial, slot_order };

// What rows look like on their way, in both passes: to the experts (dispatch), and back (combine).
struct WireFormats {
  Wire dispatch = Wire::same;
  Wire combine = Wire::same;
};

struct LaneContext : Context {
  Lane& lane;
  Exchange& exchange;  // of this lane
  CombineMode combine = CombineMode::partial;
  WireFormats wire = {};
  double token_scale = 1.0;  // 1 / tokens of the global batch; every loss is a mean over it
  bool training = true;      // a backward pass follows: the balance loss is wanted
};

}  // namespace cadre
