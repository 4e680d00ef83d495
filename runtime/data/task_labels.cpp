// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/task_labels.hpp"

#include "comm/base/check.hpp"
#include "runtime/tokenizer/bytes.hpp"

namespace cadre {

std::vector<int32_t> task_labels(std::span<const int32_t> ids, int64_t sequence_length, const TaskOptions& options) {
  const auto length = static_cast<size_t>(sequence_length);
  CADRE_ASSERT(length > 0 && ids.size() % length == 0);
  std::vector<int32_t> labels;
  for (size_t first = 0; first < ids.size(); first += length) {
    const RecognisedTask task = recognise_task(decode_bytes(ids.subspan(first, length)), options);
    labels.insert(labels.end(), length, task.matches.empty() ? kNoTask : static_cast<int32_t>(task.type));
  }
  return labels;
}

}  // namespace cadre
