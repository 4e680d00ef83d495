// SPDX-License-Identifier: Apache-2.0
// Schema of the file: launch/schemas/best.schema.json.
#include "runtime/train/evaluate.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <optional>
#include <utility>

#include "comm/job/wait.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/observe/step_metrics.hpp"
#include "runtime/train/signals.hpp"

namespace cadre {
namespace {

Evaluation given_up() {
  Evaluation evaluation;
  evaluation.loss = std::nan("");
  evaluation.stop_requested = true;
  return evaluation;
}

// The micro-batches of `count` sequences from the first one of batch `index` on. All ranks leave out those that hold none.
void evaluate_batch(Worker& worker, const BatchReader& reader, const RunConfig& config, int64_t index, int64_t count,
                    const TaskLabeller* labeller, LocalStep& local) {
  const int64_t num_parts = config.train.micro_batches;
  for (int64_t part = 0; part < num_parts; ++part) {
    const SequenceRange global = part_of({0, count}, part, num_parts);
    if (global.count == 0) continue;
    MicroBatch micro_batch(reader, index, part_of(global, worker.data_rank(), worker.grid().data),
                           config.data.sequence_length);
    micro_batch.recognise_tasks(labeller);
    const Lanes::WorkLoan loan(worker.lanes(), 0);
    ArenaScope scope(worker.arena());
    LaneContext ctx = worker.inference_context();
    ctx.recompute = recompute_of(config.train);  // keeps no more of a layer than training does
    ctx.tokens = micro_batch.facts(static_cast<uint64_t>(config.seed));
    Task<void> pass = forward_here(worker, ctx, micro_batch, static_cast<int>(index * num_parts + part), local);
    worker.run(pass);
  }
}

// Step and loss; zeros where there is no such file, or one that is damaged.
std::array<double, 2> read_best(const std::filesystem::path& file) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(file, none)) return {0.0, 0.0};
  std::ifstream stream(file);
  const auto content = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object()) return {0.0, 0.0};
  const auto number = [&](const char* key) {
    return content.contains(key) && content[key].is_number() ? content[key].get<double>() : 0.0;
  };
  return {number("step"), number("validation_loss")};
}

}  // namespace

Task<void> forward_here(Worker& worker, LaneContext& ctx, MicroBatch& micro_batch, int index, LocalStep& local,
                        StageWatch watch) {
  const std::vector<int>& route = worker.routes().routes.front();
  const Communicator& pipeline = worker.pipeline_group();
  const int64_t hidden = worker.model().config().hidden_size;
  Tensor x;
  for (const auto& stage : worker.model().stages()) {
    const auto at = static_cast<size_t>(stage->place().index);
    if (route[at] != worker.row()) continue;
    if (at > 0 && route[at - 1] != worker.row()) {
      x = ctx.arena.take_host("pipeline", DType::f32, {micro_batch.num_tokens(), hidden});
      ctx.lane.enter("receive activations", -1);
      Request arrived;
      if (x.bytes() > 0)
        arrived = pipeline.receive({x.raw(), x.bytes()}, ctx.arena.owner(), route[at - 1], stage->place().index);
      co_await arrived;
    }
    Stage::Saved saved;
    Tensor y;
    Task<void> pass = forward(*stage, ctx, micro_batch, x, saved, y, local);
    co_await pass;
    Request computed = worker.kernels().launched();
    co_await computed;
    if (watch) watch(index, *stage, saved, y);
    x = y;
    if (stage->place().is_last() || route[at + 1] == worker.row()) continue;
    ctx.lane.enter("send activations", -1);
    Buffer rows(x.bytes());
    worker.kernels().memory().read(rows.data(), x.raw(), rows.bytes());
    Request sent;
    if (!rows.empty()) sent = pipeline.send(rows.span(), rows.share(), route[at + 1], stage->place().index + 1);
    co_await sent;
  }
}

Evaluation evaluate(Worker& worker, const BatchReader& reader, const RunConfig& config, int64_t num_batches,
                    const TaskLabeller* labeller) {
  LocalStep local = empty_local_step(worker.model().config());
  const int64_t batch = config.train.batch;
  const int64_t num_windows = reader.num_windows();
  std::optional<StopVote> vote;  // under way while a batch is computed
  for (int64_t i = 0; i < num_batches && i * batch < num_windows; ++i) {
    if (vote) worker.await(vote->request());
    if (vote && vote->stops()) return given_up();
    vote.emplace(worker.world());
    evaluate_batch(worker, reader, config, i, std::min(batch, num_windows - i * batch), labeller, local);
  }
  if (vote) worker.await(vote->request());
  local.stop_requested = stop_requested();
  StepReduction reduction(worker.world(), local);
  worker.await(reduction.request());
  GlobalStep global = reduction.finish();
  return {global.loss,           global.num_tokens,  std::move(global.expert_counts),
          global.stop_requested, global.loss_weight, global.rerouted};
}

BestEvaluation::BestEvaluation(const Communicator& world, std::filesystem::path folder, int64_t steps_done,
                               int64_t patience, int64_t eval_every)
    : folder_(std::move(folder)), patience_(patience), eval_every_(eval_every) {
  if (patience == 0) return;
  const std::array<double, 2> mine =
      world.rank() == 0 && steps_done > 0 ? read_best(folder_ / kBestFile) : std::array<double, 2>{0.0, 0.0};
  const auto found = wait(world.all_reduce(mine, ReduceOp::sum));
  const auto step = static_cast<int64_t>(found[0]);
  if (step <= 0 || step > steps_done || !std::isfinite(found[1])) return;
  step_ = step;
  loss_ = found[1];
}

bool BestEvaluation::add(int64_t step, double loss) {
  if (!std::isfinite(loss) || (step_ > 0 && step_ != step && loss >= loss_)) return false;
  step_ = step;
  loss_ = loss;
  return true;
}

void BestEvaluation::write() const {
  const nlohmann::ordered_json content = {{"step", step_}, {"validation_loss", loss_}};
  write_text_file(folder_ / kBestFile, content.dump() + "\n");
}

bool BestEvaluation::is_over(int64_t step) const {
  return patience_ > 0 && step_ > 0 && step - step_ >= patience_ * eval_every_;
}

}  // namespace cadre
