// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/step_routing.hpp"

#include <array>
#include <filesystem>
#include <utility>

#include "comm/base/check.hpp"
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

}  // namespace cadre
