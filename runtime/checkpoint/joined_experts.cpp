// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/joined_experts.hpp"

#include <charconv>
#include <utility>

namespace cadre {
namespace {

constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr std::string_view kExperts = ".experts.";
constexpr std::string_view kMixtureOfMixtral = ".block_sparse_moe";  // .mlp in transformers 5

constexpr std::pair<std::string_view, ExpertWeight::Kind> kKinds[] = {
    {"gate_proj.weight", ExpertWeight::Kind::gate}, {"w1.weight", ExpertWeight::Kind::gate},
    {"up_proj.weight", ExpertWeight::Kind::up},     {"w3.weight", ExpertWeight::Kind::up},
    {"down_proj.weight", ExpertWeight::Kind::down}, {"w2.weight", ExpertWeight::Kind::down}};

}  // namespace

std::optional<ExpertWeight> expert_weight(std::string_view name) {
  const size_t experts = name.find(kExperts);
  if (experts == std::string_view::npos) return std::nullopt;
  std::string layer(name.substr(0, experts));
  if (layer.ends_with(kMixtureOfMixtral))
    layer.replace(layer.size() - kMixtureOfMixtral.size(), std::string::npos, ".mlp");
  ExpertWeight weight = {std::string(kPeftPrefix) + layer + ".experts"};
  name.remove_prefix(experts + kExperts.size());
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), weight.expert);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  name.remove_prefix(static_cast<size_t>(end - name.data()) + 1);
  for (const auto& [last, kind] : kKinds) {
    if (name != last) continue;
    weight.kind = kind;
    return weight;
  }
  return std::nullopt;
}

std::optional<std::string> joined_experts_in(std::string_view tensor) {
  if (!tensor.starts_with(kPeftPrefix)) return std::nullopt;
  tensor.remove_prefix(kPeftPrefix.size());
  for (const std::string_view end : {".lora_A.weight", ".lora_B.weight"}) {
    if (!tensor.ends_with(end)) continue;
    tensor.remove_suffix(end.size());
    if (tensor.ends_with(".base_layer")) tensor.remove_suffix(std::string_view(".base_layer").size());
    if (tensor.ends_with(".experts")) return std::string(tensor) + ".";
  }
  return std::nullopt;
}

ExpertMatrices matrices_of(const std::vector<float>& a, const std::vector<float>& b, int64_t expert,
                           int64_t num_experts, int64_t rank, int64_t width, int64_t first_row, int64_t num_rows) {
  ExpertMatrices matrices;
  const auto begin = a.begin() + expert * rank * width;
  matrices.a.assign(begin, begin + rank * width);
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    for (int64_t k = 0; k < rank; ++k) {
      matrices.b.push_back(b[static_cast<size_t>((row * rank + k) * num_experts + expert)]);
    }
  }
  return matrices;
}

}  // namespace cadre
