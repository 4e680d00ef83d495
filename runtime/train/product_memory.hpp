// SPDX-License-Identifier: Apache-2.0
// What products with weights take beside the arena: oneDNN, copies of weights, rounded operands. Parts of the memory plan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layers/tensor/parameter.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// Of oneDNN itself, as measured.
size_t onednn_bytes(const ComputeConfig& compute);

// Of the copies that products keep of weights.
size_t packed_bytes(const RunConfig& config, const ParameterStore& store);

// Of the rounded operands of the largest product of `tokens` rows.
size_t operand_bytes(const RunConfig& config, const ParameterStore& store, int64_t tokens);

}  // namespace cadre
