// SPDX-License-Identifier: Apache-2.0
// Vector loops that round f32 to bf16, private to the CPU back end.
#pragma once

#include <cstddef>

#include "comm/base/dtype.hpp"

namespace cadre {

void round_to_bf16(const float* from, bf16* to, size_t count);

// The rounded values as f32.
void round_through_bf16(const float* from, float* to, size_t count);

}  // namespace cadre
