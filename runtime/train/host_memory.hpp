// SPDX-License-Identifier: Apache-2.0
// Whether the ranks of a host fit into the memory that they share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/observe/process.hpp"

namespace cadre {

// Collective over `world`. `wanted_bytes` is what this rank has and will take. Throws ErrorKind::input on the ranks that share
// a limit which is less than they want together, and names it. Returns a line that says which limit leaves this rank least.
std::string check_host_memory(const Communicator& world, const Topology& topology, size_t wanted_bytes,
                              const std::vector<MemoryLimit>& limits = memory_limits());

// What products with weights take beside the arena: oneDNN, copies of weights, rounded operands. Parts of the memory plan.

// Of oneDNN itself, as measured.
size_t onednn_bytes(const ComputeConfig& compute);

// Of the copies that products keep of weights.
size_t packed_bytes(const RunConfig& config, const ParameterStore& store);

// Of the rounded operands of the largest product of `tokens` rows.
size_t operand_bytes(const RunConfig& config, const ParameterStore& store, int64_t tokens);

}  // namespace cadre
