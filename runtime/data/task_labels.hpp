// SPDX-License-Identifier: Apache-2.0
// The task of each sequence of tokens, as a router takes it: a number a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers/moe/task.hpp"

namespace cadre {

inline constexpr int32_t kNoTask = -1;

// For each token the TaskType, as a number, of what its whole sequence says; ids are bytes, in sequences of one length. A
// sequence in which no keyword stands has no task, so that nothing draws its tokens anywhere.
std::vector<int32_t> task_labels(std::span<const int32_t> ids, int64_t sequence_length, const TaskOptions& options);

}  // namespace cadre
