// SPDX-License-Identifier: Apache-2.0
// The parts of `cadre bench`: what parts of a step cost on this machine, each beside its floor.
#pragma once

#include <cstdint>
#include <string>

#include "launch/command.hpp"

namespace cadre {

Command bench_gemm_command();
Command bench_generate_command();
Command bench_exchange_command();
Command bench_layer_command();
Command bench_overlap_command();
Command bench_permute_command();
Command bench_router_command();

// --device of a part: what computes.
Field device_option(std::string& device);

// Throws when there are fewer experts than a token is to have.
void check_top_k(int64_t top_k, int64_t experts);

}  // namespace cadre
