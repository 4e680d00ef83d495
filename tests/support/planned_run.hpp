// SPDX-License-Identifier: Apache-2.0
// A machine and a run whose step can be worked out by hand.
#pragma once

#include "runtime/config/run_config.hpp"
#include "runtime/plan/machine.hpp"

namespace cadre::test {

// Each rate another one, so that none can stand for another.
inline Machine machine_of_tens() {
  Machine machine;
  machine.attention = {10, 20, 40};
  machine.router = {1, 2, 4};
  machine.shared_experts = {11, 12, 13};
  machine.dense = {21, 22, 23};
  machine.head = {31, 32, 33};
  machine.experts = {{8, {5, 6, 7}}, {16, {15, 26, 37}}};
  machine.embedding = 1.5;
  machine.dispatch = 2.5;
  machine.combine = 3.5;
  machine.combine_grad = 4.5;
  machine.dispatch_grad = 5.5;
  machine.reduction = 6.5;
  machine.gradient_norm = 7.5;
  machine.update = 8.5;
  machine.repack = 9.5;
  machine.host = {1e-6, 1e-10, 0.5, 0.25};
  machine.network = {1e-5, 1e-9, 0.0, 0.0};
  return machine;
}

inline RunConfig small_run() {
  RunConfig config;
  config.model.hidden_size = 8;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 2;
  config.model.num_key_value_heads = 2;
  config.model.vocab_size = 64;
  config.model.intermediate_size = 16;
  config.model.first_k_dense_replace = 1;
  config.model.n_routed_experts = 8;
  config.model.num_experts_per_tok = 2;
  config.model.moe_intermediate_size = 4;
  config.model.n_shared_experts = 1;
  config.data.sequence_length = 16;
  config.train.batch = 8;
  config.train.micro_batches = 2;
  config.exchange.strategy = "flat";
  return config;
}

}  // namespace cadre::test
