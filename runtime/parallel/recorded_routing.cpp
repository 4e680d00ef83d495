// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/recorded_routing.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {
namespace {

constexpr const char* kRoutingHint = "expected what cadre score --routing, or log.routing, wrote for the same tokens";

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

RecordedRouting::RecordedRouting(const std::filesystem::path& path, const ModelConfig& model,
                                 std::optional<int64_t> num_tokens)
    : num_tokens_(num_tokens.value_or(-1)) {
  const SafetensorsReader reader(path);
  for (const int layer : moe_layers_of(model)) {
    if (layer >= model.num_hidden_layers) continue;
    const std::string name = fmt::format("layers.{}.topk_indices", layer);
    const TensorEntry* const entry = reader.find(name);
    CADRE_CHECK(entry != nullptr, fmt::format("{} has no tensor {}", path.string(), name), kRoutingHint);
    const bool is_matrix = entry->dtype == DType::i64 && entry->shape.size() == 2 && entry->shape[1] >= 1;
    if (is_matrix && num_tokens_ < 0) num_tokens_ = entry->shape[0];
    CADRE_CHECK(is_matrix && entry->shape[0] == num_tokens_,
                fmt::format("{}: {} is {} [{}], allowed: I64 [{},K]", path.string(), name, entry->dtype_name,
                            fmt::join(entry->shape, ","), num_tokens_ < 0 ? "T" : std::to_string(num_tokens_)),
                kRoutingHint);
    ids_[layer] = ids_in(reader.bytes(*entry), model.n_routed_experts, entry->shape[1],
                         fmt::format("{}: {}", path.string(), name));
  }
  CADRE_CHECK(!ids_.empty(), fmt::format("{} to replay, allowed: nothing for a model without experts", path.string()),
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

void RecordedRouting::append(Replay& replay, std::optional<int64_t> token) const {
  for (const auto& [layer, ids] : ids_) {
    const auto slots = static_cast<std::ptrdiff_t>(ids.size()) / num_tokens_;
    std::vector<int32_t>& to = replay.ids[layer];
    if (token) {
      to.insert(to.end(), ids.begin() + *token * slots, ids.begin() + (*token + 1) * slots);
    } else {
      to.insert(to.end(), static_cast<size_t>(slots), kNotRecorded);
    }
  }
}

ResultPiece routing_piece(int layer, const Tensor& ids, int64_t first_token, int64_t num_tokens) {
  Buffer wide(static_cast<size_t>(ids.numel()) * sizeof(int64_t));
  for (int64_t i = 0; i < ids.numel(); ++i) wide.as<int64_t>()[i] = ids.data<int32_t>()[i];
  return {
      fmt::format("layers.{}.topk_indices", layer), DType::i64, {num_tokens, ids.dim(1)}, first_token, std::move(wide)};
}

std::string describe(const ReplayCounts& counts) {
  const double share =
      static_cast<double>(counts.differing) / static_cast<double>(std::max<int64_t>(1, counts.choices));
  return fmt::format("replayed {} choices of experts; without, {:.3f} % would be others", counts.choices,
                     100.0 * share);
}

}  // namespace cadre
