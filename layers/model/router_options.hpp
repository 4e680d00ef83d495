// SPDX-License-Identifier: Apache-2.0
// From the keys of a model to what its routers are told.
#pragma once

#include "layers/model/config.hpp"
#include "layers/moe/expert_options.hpp"
#include "layers/moe/router.hpp"

namespace cadre {

RouterOptions router_options(const ModelConfig& config);

// Throws on the first combination of routing keys that cannot run.
void check_router(const ModelConfig& config);

// The number of the task that each expert is meant for, -1 for none; empty where the model names none.
std::vector<int32_t> expert_tasks(const ModelConfig& config);

// What routed experts are made of.
ExpertOptions expert_options(const ModelConfig& config);
// Of all routed experts of one layer; active: if a row met all of them.
ExpertWeights routed_expert_weights(const ModelConfig& config);

// The most experts that a token can visit.
int64_t slots_per_token(const ModelConfig& config);
// Of the rows that travel between tokens and experts.
int64_t widest_row(const ModelConfig& config);

// Elements of one layer's router that take part in products, and those of its buffers.
int64_t router_weights(const ModelConfig& config);
int64_t router_buffers(const ModelConfig& config);

}  // namespace cadre
