// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/slot_record.hpp"

#include <fmt/format.h>

#include "comm/base/check.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

std::vector<SlotRecord> make_slot_records(const DispatchPlan& plan, const Tensor& weights) {
  std::vector<SlotRecord> records;
  records.reserve(plan.slots.size());
  for (int rank = 0; rank < plan.num_ranks(); ++rank) {
    const int64_t first_row = plan.row_offsets[rank];
    for (int64_t row = first_row; row < plan.row_offsets[rank + 1]; ++row) {
      for (int32_t at = plan.row_slots[row]; at < plan.row_slots[row + 1]; ++at) {
        records.push_back(
            {static_cast<int32_t>(row - first_row), plan.slot_expert[at], element(weights, plan.slots[at])});
      }
    }
  }
  return records;
}

ExpertBatch make_expert_batch(const ReceiveCounts& receive, const SlotRecord* records, int num_local_experts) {
  std::vector<int32_t> row_slot_counts(static_cast<size_t>(receive.num_rows()), 0);
  std::vector<int32_t> slot_expert(static_cast<size_t>(receive.num_slots()));
  for (size_t source = 0; source < receive.slot_counts.size(); ++source) {
    for (int64_t slot = receive.slot_offsets[source]; slot < receive.slot_offsets[source + 1]; ++slot) {
      const SlotRecord& record = records[slot];
      CADRE_CHECK_PEER(record.row >= 0 && record.row < receive.row_counts[source],
                       fmt::format("a slot from rank {} of the expert group names row {} of {}", source, record.row,
                                   receive.row_counts[source]));
      ++row_slot_counts[receive.row_offsets[source] + record.row];
      slot_expert[slot] = record.expert;
    }
  }
  return make_expert_batch(row_slot_counts, slot_expert, num_local_experts);
}

}  // namespace cadre
