// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/step_routing.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {
namespace {

std::filesystem::path routing_file(const std::string& folder, int64_t step) {
  return std::filesystem::path(folder) / fmt::format("step_{:08d}.safetensors", step);
}

void write_routing(const std::filesystem::path& path, const std::vector<ResultTensor>& tensors) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  CADRE_CHECK(!error, fmt::format("log.routing = {}: {}", path.parent_path().string(), error.message()),
              "name a folder that can be written");
  std::vector<TensorSource> sources;
  for (const ResultTensor& tensor : tensors) {
    sources.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.memory.span()});
  }
  write_safetensors(path.string(), sources);
}

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

void StepRouting::check_files(int64_t first, int64_t last) const {
  for (int64_t step = first; step <= last && !config_.train.replay.empty(); ++step) {
    const std::filesystem::path path = routing_file(config_.train.replay, step);
    CADRE_CHECK(std::filesystem::exists(path),
                fmt::format("train.replay = {}: {} is missing", config_.train.replay, path.filename().string()),
                "a run with log.routing=FOLDER writes a file for each step");
  }
}

SequenceRange StepRouting::range_of(int micro_batch) const {
  const SequenceRange global = part_of({0, config_.train.batch}, micro_batch, config_.train.micro_batches);
  return part_of(global, worker_.data_rank(), worker_.grid().data);
}

void StepRouting::begin(int64_t step) {
  step_ = step;
  pieces_.clear();
  replays_.clear();
  if (config_.train.replay.empty()) return;
  const int64_t length = config_.data.sequence_length;
  const RecordedRouting recorded(routing_file(config_.train.replay, step), config_.model, config_.train.batch * length);
  for (int i = 0; i < config_.train.micro_batches; ++i) {
    const SequenceRange range = range_of(i);
    replays_.push_back(recorded.of_tokens(range.first * length, range.count * length));
  }
}

StageWatch StepRouting::watch() {
  if (config_.log.routing.empty()) return {};
  return [this](int micro_batch, const Stage& stage, const Stage::Saved& saved, const Tensor& /*y*/) {
    const int64_t length = config_.data.sequence_length;
    for (int layer = stage.layers().first; layer < stage.layers().last; ++layer) {
      if (!is_moe_layer(config_.model, layer)) continue;
      pieces_.push_back(routing_piece(layer, stage.saved_of(saved, layer)->moe.router.ids,
                                      range_of(micro_batch).first * length, config_.train.batch * length));
    }
  };
}

void StepRouting::end() {
  for (const Replay& replay : replays_) {
    counts_.choices += replay.counts.choices;
    counts_.differing += replay.counts.differing;
  }
  if (config_.log.routing.empty()) return;
  const std::vector<ResultTensor> tensors = gather_results(worker_, std::exchange(pieces_, {}));
  if (worker_.world().rank() == 0) write_routing(routing_file(config_.log.routing, step_), tensors);
}

std::string StepRouting::report() const {
  if (config_.train.replay.empty()) return "";
  const std::array mine = {counts_.choices, counts_.differing};
  const auto all = worker_.await(worker_.world().all_reduce(mine, ReduceOp::sum));
  return describe(ReplayCounts{all[0], all[1]});
}

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
