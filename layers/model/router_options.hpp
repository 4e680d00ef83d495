// SPDX-License-Identifier: Apache-2.0
// From the keys of a model to the options of its routers and experts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/moe/expert.hpp"

namespace cadre {

// The keys of routers and of what surrounds them, bound to the members of `config`: a part of fields_of().
std::vector<Field> router_fields(ModelConfig& config);

// config.router, and what follows from other keys.
RouterOptions router_options(const ModelConfig& config);

// The plugin that the router is from; empty for a built-in router, also where a run takes its exchange from a plugin.
std::string router_plugin(const ModelConfig& config);

// Throws on the first combination of routing keys that cannot run.
void check_router(const ModelConfig& config);

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
