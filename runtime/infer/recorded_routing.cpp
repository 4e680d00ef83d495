// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/recorded_routing.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "comm/base/check.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {
namespace {

constexpr const char* kRoutingHint = "expected what cadre score --routing wrote for the same tokens";

std::vector<int32_t> ids_in(std::span<const std::byte> bytes, int64_t num_experts, int64_t num_slots,
                            const std::string& where) {
  std::vector<int32_t> ids;
  for (size_t at = 0; at < bytes.size(); at += sizeof(int64_t)) {
    int64_t id = 0;
    std::memcpy(&id, &bytes[at], sizeof id);
    const auto token_begin = ids.end() - static_cast<std::ptrdiff_t>(ids.size() % static_cast<size_t>(num_slots));
    CADRE_CHECK(id >= -1 && id < num_experts && (id < 0 || std::find(token_begin, ids.end(), id) == ids.end()),
                fmt::format("{}: token {} visits expert {}, allowed: each of [0, {}) once, or -1", where,
                            static_cast<int64_t>(ids.size()) / num_slots, id, num_experts),
                kRoutingHint);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

RecordedRouting::RecordedRouting(const std::filesystem::path& path, const ModelConfig& model, int64_t num_tokens)
    : num_tokens_(num_tokens) {
  const SafetensorsReader reader(path);
  for (const int layer : moe_layers_of(model)) {
    if (layer >= model.num_hidden_layers) continue;
    const std::string name = fmt::format("layers.{}.topk_indices", layer);
    const TensorEntry* const entry = reader.find(name);
    CADRE_CHECK(entry != nullptr, fmt::format("{} has no tensor {}", path.string(), name), kRoutingHint);
    const bool fits =
        entry->dtype == DType::i64 && entry->shape.size() == 2 && entry->shape[0] == num_tokens && entry->shape[1] >= 1;
    CADRE_CHECK(fits,
                fmt::format("{}: {} is {} [{}], allowed: I64 [{},K]", path.string(), name, entry->dtype_name,
                            fmt::join(entry->shape, ","), num_tokens),
                kRoutingHint);
    ids_[layer] = ids_in(reader.bytes(*entry), model.n_routed_experts, entry->shape[1],
                         fmt::format("{}: {}", path.string(), name));
  }
  CADRE_CHECK(!ids_.empty(), fmt::format("--replay = {}, allowed: nothing for a model without experts", path.string()),
              "no router chooses here");
}

Replay RecordedRouting::of_tokens(int64_t first, int64_t count) const {
  Replay replay;
  for (const auto& [layer, ids] : ids_) {
    const int64_t slots = static_cast<int64_t>(ids.size()) / num_tokens_;
    replay.ids[layer].assign(ids.begin() + first * slots, ids.begin() + (first + count) * slots);
  }
  return replay;
}

}  // namespace cadre
