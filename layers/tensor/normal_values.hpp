// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "comm/base/random.hpp"

namespace cadre {

// values[i] = float(scale * random.normal(i)), the same bits, several at a time.
void fill_normal(const Random& random, double scale, std::span<float> values);

}  // namespace cadre
