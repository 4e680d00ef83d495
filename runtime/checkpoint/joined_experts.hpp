// SPDX-License-Identifier: Apache-2.0
// Adapters of experts as PEFT saves them on classes of transformers 5, which keep the E experts of a layer as two parameters:
// gate_up_proj [E,2F,H], with the rows of gate_proj first, and down_proj [E,H,F]. Of a parameter [E,N,K] with rank R
//   lora_A [E R,K] has row k of expert e in row e R + k, lora_B [N,R E] has its column k in column k E + e.
// PEFT wraps gate_up_proj first: where both have adapters, its own are those of experts.base_layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// A projection of an expert, by the name of its weight in files.
struct ExpertWeight {
  std::string layer;  // "base_model.model.model.layers.1.mlp.experts", as PEFT names where the adapters lie
  int64_t expert = 0;
  enum class Kind { gate, up, down } kind = Kind::gate;
};

// Nothing where the weight is not that of a routed expert.
std::optional<ExpertWeight> expert_weight(std::string_view name);

// "model.layers.1.mlp.experts." of a tensor of such adapters; nothing of other names.
std::optional<std::string> joined_experts_in(std::string_view tensor);

// The matrices of one expert from those of all: a [R,K] and b [N,R], of N rows from first_row on.
struct ExpertMatrices {
  std::vector<float> a, b;
};
ExpertMatrices matrices_of(const std::vector<float>& a, const std::vector<float>& b, int64_t expert,
                           int64_t num_experts, int64_t rank, int64_t width, int64_t first_row, int64_t num_rows);

}  // namespace cadre
