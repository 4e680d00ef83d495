// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include "runtime/config/recompute.hpp"
#include "runtime/observe/step_metrics.hpp"
#include "runtime/train/signals.hpp"

namespace cadre {

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

}  // namespace

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

}  // namespace cadre
