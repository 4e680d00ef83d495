// SPDX-License-Identifier: Apache-2.0
// For tests of model checkpoints: a small model of which every element is known by name, and ways to save it.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/random.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/save.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::test {

inline constexpr double kDeadlineSeconds = 60.0;
inline constexpr const char* kRunToml = "out = \"run\"\n";
inline constexpr const char* kSomeExpert = "model.layers.1.mlp.experts.9.up_proj.weight";

// A dense layer and a mixture of ten experts with a selection bias: shared, expert and buffer parameters, fused ones
// and vectors.
inline ModelConfig small_config(int64_t num_experts = 10) {
  ModelConfig config;
  config.vocab_size = 11;
  config.hidden_size = 8;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.intermediate_size = 12;
  config.n_routed_experts = num_experts;
  config.num_experts_per_tok = 2;
  config.n_shared_experts = 1;
  config.moe_intermediate_size = 6;
  config.first_k_dense_replace = 1;
  config.scoring_func = ScoreFunction::sigmoid;
  config.topk_method = TopkMethod::noaux_tc;
  fill_defaults(config);
  check(config);
  return config;
}

// What one rank of a run holds.
struct ModelRank {
  // `keeps`: whose moments; by default of all.
  ModelRank(const ModelConfig& config, int num_ranks, int rank, DType dtype = DType::f32,
            const ParameterChoice& keeps = {})
      : model(config, make_expert_map(config, num_ranks), rank),
        store(make_store(dtype)),
        optimizer(store, {}, keeps) {}

  ParameterStore make_store(DType dtype) {
    ParameterStore made;
    made.add_all(model);
    made.allocate(dtype, /*with_grad=*/true, /*dry_run=*/false);
    return made;
  }
  std::vector<NamedTensor> tensors() const {
    std::vector<NamedTensor> tensors = name_values(store, any_parameter);
    for (NamedTensor& moment : name_moments(optimizer, any_parameter)) tensors.push_back(std::move(moment));
    return tensors;
  }

  Model model;
  ParameterStore store;
  Optimizer optimizer;
};

// The value of an element follows from its name and place, on whatever rank it lies.
inline float element(const std::string& name, int64_t i) {
  return static_cast<float>(Random(0, "test", hash_name(name)).normal(static_cast<uint64_t>(i)));
}

inline void fill(const ModelRank& rank) {
  for (const auto& [name, memory] : rank.tensors()) {
    for (int64_t i = 0; i < memory.numel(); ++i) put_element(memory, i, element(name, i));
  }
}

inline void poison(const ModelRank& rank) {
  for (const NamedTensor& tensor : rank.tensors()) poison(tensor.memory);
}

inline bool is_filled(const NamedTensor& tensor) {
  for (int64_t i = 0; i < tensor.memory.numel(); ++i) {
    if (tensor.memory.data<float>()[i] != element(tensor.name, i)) return false;
  }
  return true;
}

inline bool is_poison(const NamedTensor& tensor) {
  for (int64_t i = 0; i < tensor.memory.numel(); ++i) {
    if (!std::isnan(tensor.memory.data<float>()[i])) return false;
  }
  return true;
}

inline CheckpointState state_at(int64_t step, const ModelConfig& config) {
  CheckpointState state{.manifest = {}, .model = config, .run_toml = kRunToml};
  state.manifest.step = step;
  state.manifest.seed = 7;
  state.manifest.tokens_seen = 1000 * step;
  return state;
}

inline std::filesystem::path save(const Communicator& world, const std::filesystem::path& root, int64_t step,
                                  const ModelRank& rank, bool writes_experts) {
  const ParameterChoice writes = [&](const Parameter& parameter) {
    return parameter.placement == Placement::expert ? writes_experts : world.rank() == 0;
  };
  return save_checkpoint({world, writes, kDeadlineSeconds}, root, state_at(step, rank.model.config()), rank.store,
                         rank.optimizer, {.newest = 2});
}

// Saves the model of `config` that is spread over all ranks.
inline std::filesystem::path save_filled(const Communicator& world, const std::filesystem::path& root, int64_t step,
                                         const ModelConfig& config) {
  const ModelRank rank(config, world.size(), world.rank());
  fill(rank);
  return save(world, root, step, rank, true);
}

// The same by one rank, for tests of loading.
inline std::filesystem::path save_alone(const std::filesystem::path& root, const ModelConfig& config = small_config()) {
  std::filesystem::path path;
  on_one_rank([&](Communicator world) { path = save_filled(std::move(world), root, 5, config); });
  return path;
}

}  // namespace cadre::test
