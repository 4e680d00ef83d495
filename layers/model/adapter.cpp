// SPDX-License-Identifier: Apache-2.0
#include "layers/model/adapter.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "comm/wire/fp8.hpp"
#include "layers/model/family.hpp"

namespace cadre {
namespace {

constexpr std::string_view kWeight = ".weight";

// "up_proj" of "model.layers.1.mlp.experts.3.up_proj.weight"
std::string_view projection_in(std::string_view name) {
  name.remove_suffix(kWeight.size());
  return name.substr(name.rfind('.') + 1);
}

bool is_in_layers(const ModelConfig& config, std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return false;
  int64_t layer = 0;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return layer < config.num_hidden_layers;
}

std::vector<std::string> projections_named(const ModelConfig& config, const FfnNames& names) {
  std::vector<std::string> projections;
  if (config.ffn_gate) projections.emplace_back(names.gate);
  projections.emplace_back(names.up);
  projections.emplace_back(names.down);
  return projections;
}

int64_t scale_blocks(int64_t extent) { return (extent + kFp8TileChannels - 1) / kFp8TileChannels; }

void fix(Parameter& weight, FixedFormat format) {
  weight.placement = Placement::fixed;
  weight.frozen = true;
  const bool is_router = weight.name().find(".gate.") != std::string::npos;
  if (format == FixedFormat::fp32 || weight.value.num_dims() != 2 || is_router) return;
  if (format == FixedFormat::bf16 || !is_projection(weight.name())) {
    weight.value = weight.value.with_memory(nullptr, DType::bf16);
    return;
  }
  weight.value = weight.value.with_memory(nullptr, DType::fp8);
  int64_t blocks = 0;
  for (const ParameterPart& part : weight.parts) blocks += scale_blocks(part.num_rows);
  weight.scales = Tensor(nullptr, DType::f32, {blocks, scale_blocks(weight.value.dim(1))});
}

// N(0, 1 / (3 K)): the variance of the uniform values that PEFT begins with. b is zero, so that nothing changes at first.
LowRank addition_to(const Parameter& weight, Placement placement, const ParameterPart& part,
                    const AdapterOptions& options) {
  const int64_t width = weight.value.dim(1);
  LowRank added;
  added.a = make_weight({{adapter_name(part.name, 'A'), options.rank}}, width,
                        1.0 / std::sqrt(3.0 * static_cast<double>(width)), placement);
  added.b = make_weight({{adapter_name(part.name, 'B'), part.num_rows}}, options.rank, 0.0, placement);
  added.a.holders = added.b.holders = weight.holders;
  added.first_row = part.first_row;
  added.scale = options.scale();
  added.dropout = options.dropout;
  return added;
}

}  // namespace

std::vector<std::string> projections_of(const ModelConfig& config) {
  std::vector<std::string> names;
  if (!has_latent_attention(config)) {
    names = {"q_proj", "k_proj", "v_proj", "o_proj"};
  } else if (config.q_lora_rank > 0) {
    names = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"};
  } else {
    names = {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"};
  }
  for (const auto& of_kind : {dense_projections(config), expert_projections(config)}) {
    for (const std::string& name : of_kind) {
      if (std::ranges::find(names, name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

std::vector<std::string> expert_projections(const ModelConfig& config) {
  if (config.n_routed_experts == 0) return {};
  return projections_named(config, family_of(config).names.expert);
}

std::vector<std::string> dense_projections(const ModelConfig& config) {
  bool has_them = config.n_shared_experts > 0 || config.ffn_highway;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) has_them |= !is_moe_layer(config, layer);
  return has_them ? projections_named(config, {}) : std::vector<std::string>{};
}

bool is_projection(std::string_view name) {
  if (name.ends_with(".eh_proj.weight")) return false;
  if (name.ends_with("_proj.weight") || name.ends_with("_proj_with_mqa.weight")) return true;
  constexpr std::string_view kOfMixtral[] = {".w1.weight", ".w2.weight", ".w3.weight"};
  return name.find(".experts.") != std::string_view::npos &&
         std::ranges::any_of(kOfMixtral, [&](std::string_view end) { return name.ends_with(end); });
}

std::string adapter_name(std::string_view weight, char matrix) {
  weight.remove_suffix(kWeight.size());
  return fmt::format("base_model.model.{}.lora_{}.weight", weight, matrix);
}

void add_adapters(const ModelConfig& config, const AdapterOptions& options,
                  const std::function<void(const ParameterVisitor&)>& each_parameter) {
  std::vector<Parameter*> weights;  // before there are adapters, which a visit would reach too
  each_parameter([&](Parameter& parameter) { weights.push_back(&parameter); });
  for (Parameter* weight : weights) {
    const Placement placement = weight->placement;
    fix(*weight, options.format);
    for (const ParameterPart& part : weight->parts) {
      const bool is_target = is_projection(part.name) && is_in_layers(config, part.name) &&
                             std::ranges::find(options.targets, projection_in(part.name)) != options.targets.end();
      if (is_target) weight->low_rank.push_back(addition_to(*weight, placement, part, options));
    }
  }
}

}  // namespace cadre
