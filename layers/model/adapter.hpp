// SPDX-License-Identifier: Apache-2.0
// Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the projections of a model whose other weights stay as they are.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

// How projections and vocabulary tables below adapters are kept. fp8: projections as E4M3 with a scale for 128 x 128
// values, tables in bf16. Norms, biases and routers are in fp32.
enum class FixedFormat { fp32, bf16, fp8 };

struct AdapterOptions {
  int64_t rank = 0;  // 0: no adapters, all weights train
  double alpha = 0.0;
  double dropout = 0.0;
  std::vector<std::string> targets;  // names of projections: q_proj, o_proj, up_proj, ...
  FixedFormat format = FixedFormat::bf16;

  double scale() const { return alpha / static_cast<double>(rank); }
};

// The projections that a model has, by their names in its files: of attention, then of feed-forward networks and experts.
std::vector<std::string> projections_of(const ModelConfig& config);

// The projections of routed experts, and those of dense networks and shared experts, by name: {gate, up, down} or {up, down}.
// Empty where the model has no such networks.
std::vector<std::string> expert_projections(const ModelConfig& config);
std::vector<std::string> dense_projections(const ModelConfig& config);

// Whether a weight of this name is such a projection (not embedding, head, router, or eh_proj).
bool is_projection(std::string_view name);

// The name of one of the two matrices of an addition to the weight of that name, as PEFT has it in files:
// base_model.model.<name without .weight>.lora_<A or B>.weight.
std::string adapter_name(std::string_view weight, char matrix);

// Of a model that has no memory yet: makes all parameters fixed, in their format, and puts adapters on the targets outside of
// MTP modules. `each_parameter` visits the parameters.
void add_adapters(const ModelConfig& config, const AdapterOptions& options,
                  const std::function<void(const ParameterVisitor&)>& each_parameter);

}  // namespace cadre
