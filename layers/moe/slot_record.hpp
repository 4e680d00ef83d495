// SPDX-License-Identifier: Apache-2.0
// What travels to an expert's rank beside the rows, one a slot, and what that rank learns from it.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/exchange/plan.hpp"
#include "comm/exchange/route.hpp"
#include "comm/wire/format.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

struct SlotRecord {
  int32_t row;     // which row of this (source, destination) pair
  int32_t expert;  // index on the destination rank
  double weight;
};

inline const RowFormat kSlotRecordFormat = RowFormat::of_bytes(sizeof(SlotRecord));

// In the order of the plan's slots; weights [T,slots].
std::vector<SlotRecord> make_slot_records(const DispatchPlan& plan, const Tensor& weights);

// From the records that came, one for each slot of `receive`. Throws where one names a row that did not come.
ExpertBatch make_expert_batch(const ReceiveCounts& receive, const SlotRecord* records, int num_local_experts);

}  // namespace cadre
