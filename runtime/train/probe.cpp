// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/probe.hpp"

#include <string_view>
#include <vector>

#include "comm/base/median.hpp"
#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "runtime/train/memory_plan.hpp"

namespace cadre {
namespace {

constexpr size_t kEventsOfPass = size_t{1} << 16;

}  // namespace

RunConfig one_micro_batch_of(const RunConfig& config, int num_ranks) {
  RunConfig probe = config;
  const Grid grid =
      Grid::make(num_ranks, static_cast<int>(config.parallel.pipeline), static_cast<int>(config.parallel.expert));
  const auto parts = [](int64_t whole, int64_t count) { return (whole + count - 1) / count; };
  probe.parallel.pipeline = 1;
  probe.parallel.expert = grid.expert;
  probe.parallel.schedule = "1f1b";
  probe.parallel.shard_optimizer = false;
  probe.parallel.shard_gradients = false;
  probe.parallel.placement.clear();
  probe.train.batch = parts(parts(config.train.batch, config.train.micro_batches), grid.data) * num_ranks;
  probe.train.micro_batches = 1;
  probe.model.num_nextn_predict_layers = 0;
  probe.checkpoint.partner_copies = 0;
  probe.exchange.progress = "poll";
  return probe;
}

double sum_of(const PhaseSeconds& phases) {
  double sum = 0.0;
  for (const auto& [phase, seconds] : phases) sum += seconds;
  return sum;
}

Probe::Probe(const Communicator& world, const RunConfig& config)
    : config_(config), worker_(world.duplicate("probe"), training_options(config, world)) {
  worker_.store().initialise(static_cast<uint64_t>(config.seed));
}

PhaseSeconds Probe::pass() {
  TraceRecorder recorder(kEventsOfPass);
  const TraceScope tracing(worker_.job().tracer(), recorder);
  MicroBatch batch = drawn_batch();
  DeferredQueue deferred;
  LaneContext ctx = worker_.lanes().training_context(1.0 / static_cast<double>(batch.num_tokens()), deferred, 0);
  ctx.tokens = batch.facts(static_cast<uint64_t>(config_.seed));
  worker_.forget_grads();
  Request together = worker_.world().barrier();
  worker_.await(together);
  {
    const PollScope polling(worker_.poller());
    Task<void> task = forward_and_backward(ctx, batch.tokens());
    worker_.run(task);
  }
  recorder.end();
  PhaseSeconds seconds;
  for (const TraceEvent& event : recorder.events()) {
    if (event.kind != TraceKind::compute) continue;
    seconds[key_of(event.at)] += static_cast<double>(event.end_ns - event.begin_ns) * 1e-9;
  }
  return seconds;
}

PhaseSeconds Probe::median_of_passes(int num_passes) {
  pass();
  std::map<std::string, std::vector<double>> passes;
  for (int i = 0; i < num_passes; ++i) {
    for (const auto& [phase, seconds] : pass()) passes[phase].push_back(seconds);
  }
  PhaseSeconds phases;
  for (auto& [phase, seconds] : passes) {
    seconds.resize(static_cast<size_t>(num_passes), 0.0);
    phases[phase] = median_of(std::move(seconds));
  }
  return phases;
}

std::string Probe::key_of(const Position& at) const {
  const bool is_dense = at.layer >= 0 && !is_moe_layer(config_.model, at.layer);
  return is_dense && std::string_view(at.phase).starts_with("ffn") ? std::string("dense ") + at.phase : at.phase;
}

MicroBatch Probe::drawn_batch() {
  const int64_t sequences = config_.train.batch / worker_.world().size();
  const Random random(static_cast<uint64_t>(config_.seed), "probe", static_cast<uint64_t>(worker_.world().rank()));
  std::vector<int32_t> ids(static_cast<size_t>(sequences * config_.data.sequence_length));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(random.below(static_cast<uint64_t>(config_.model.vocab_size), num_drawn_++));
  }
  return {ids, ids, sequences, config_.data.sequence_length, sequences * worker_.world().rank()};
}

Task<void> Probe::forward_and_backward(LaneContext& ctx, TokenBatch batch) {
  const ArenaScope scope(ctx.arena);
  Stage& stage = *worker_.model().stages().front();
  Stage::Saved saved;
  Task<Stage::Output> forward = stage.forward(ctx, batch, Tensor(), saved);
  co_await forward;
  Task<Tensor> backward = stage.backward(ctx, saved, Tensor(), Stage::Weights::at_once);
  co_await backward;
}

}  // namespace cadre
