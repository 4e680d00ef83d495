// SPDX-License-Identifier: Apache-2.0
// One step of a trainer: its passes, with and without overlap, the update, and what follows where it is not finite.
#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "comm/base/trace.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/optim/lr_schedule.hpp"
#include "runtime/parallel/step.hpp"
#include "runtime/train/non_finite.hpp"
#include "runtime/train/signals.hpp"
#include "runtime/train/trainer.hpp"

namespace cadre {
namespace {

double milliseconds(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6; }

// Freezes what the stage of progressive training does not train, and nothing else.
void freeze_all_but(Trained trained, const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    if (parameter->placement == Placement::fixed) continue;
    parameter->frozen = !trains(trained, part_of_parameter(parameter->name()));
  }
}

}  // namespace

StepWork Trainer::work_of_step() {
  const TrainConfig& train = config_.train;
  const int64_t length = config_.data.sequence_length;
  const auto range_of = [this, &train](int micro_batch) {
    const SequenceRange global = part_of({0, train.batch}, micro_batch, train.micro_batches);
    return part_of(global, worker_.data_rank(), worker_.grid().data);
  };
  StepWork work;
  work.step = progress_.step + 1;
  work.adapter_dropout = has_adapters(config_) && config_.adapter.dropout > 0.0;
  work.seed = static_cast<uint64_t>(config_.seed);
  work.token_scale = 1.0 / static_cast<double>(train.batch * length);
  const double weight = train_reader_.weight_of_batch(progress_.data, train.batch);
  work.loss_scale = weight > 0.0 ? 1.0 / weight : 0.0;
  work.read = [this, range_of, length](int i) {
    MicroBatch micro_batch(train_reader_, progress_.data, progress_.step, range_of(i), length);
    micro_batch.recognise_tasks(labeller());
    micro_batch.set_replay(routing_.replay_of(i));
    return micro_batch;
  };
  work.num_tokens = [range_of, length](int i) { return range_of(i).count * length; };
  return work;
}

void Trainer::pass(const StepWork& work, LocalStep& local, Overlap overlap) {
  const TraceSpan span(worker_.job().tracer(), TraceKind::op, {.step = work.step, .phase = "passes"});
  worker_.forget_grads();
  routing_.begin(work.step);
  executor_.run(work, local, overlap);
  worker_.gradients().finish();
}

// Its gradients are overwritten by those of the step itself, which must be the same.
Trainer::Outcome Trainer::pass_without_overlap(StepWork work) {
  LocalStep local = empty_local_step(config_.model);
  begin_together();
  {
    const TraceSpan span(worker_.job().tracer(), TraceKind::step, {.step = work.step, .phase = "step without overlap"});
    worker_.gradients().complete_values();
    // The step itself hands them over once more, as it would have without this.
    if (work.step > 1) worker_.gradients().mark_values_changed();
    const int64_t begin_ns = trace_clock_ns();
    pass(work, local, Overlap::off);
    serial_passes_s_ = milliseconds(begin_ns) * 1e-3;
  }
  for (const auto& [layer, router] : routers_here()) router->take_statistics();  // counted again by the step itself
  return outcome_of(local.loss_sum);
}

// So that what ranks wait for in a step is of that step.
void Trainer::begin_together() const {
  Request together = worker_.world().barrier();
  worker_.await(together);
}

// By their bits, so that a NaN equals itself.
Trainer::Outcome Trainer::outcome_of(double loss_sum) {
  return {std::bit_cast<uint64_t>(loss_sum), gradient_hash(worker_)};
}

void Trainer::check_same(const Outcome& serial, const Outcome& overlapped) const {
  if (overlapped == serial) return;
  throw Error(
      ErrorKind::internal,
      fmt::format("step {}: overlap changed the result: loss sum {:.17g} and gradients {:016x} became {:.17g} and "
                  "{:016x}",
                  progress_.step, std::bit_cast<double>(serial.loss_bits), serial.gradient_hash,
                  std::bit_cast<double>(overlapped.loss_bits), overlapped.gradient_hash),
      "please report the case; parallel.overlap=false avoids it");
}

StepRecord Trainer::step() {
  begin_stage();
  const StepWork work = work_of_step();
  worker_.lane().position = {.step = work.step};
  const bool traces = tracer_.traces(work.step);
  const bool checks = forecast_ && forecast_->wants_serial_step();
  if (traces) tracer_.begin(work.step);
  std::optional<Outcome> serial;
  if (checks || (traces && config_.trace.compare)) serial = pass_without_overlap(work);
  if (traces || checks) begin_together();
  // Gradients stay until the next step, unless experts move.
  StepRecord record = step(work, /*may_move=*/!serial);
  if (serial && skipped_in_a_row_ == 0) check_same(*serial, outcome_of(loss_sum_));
  if (forecast_) forecast_->add(record.step_ms * 1e-3);
  if (checks) {
    note(forecast_->conclude(serial_passes_s_));
    forecast_.reset();
  }
  if (traces) note(tracer_.end(work.step));
  rebalance(record);
  return record;
}

// A run that ends now, or that a signal ends, saves what it has where it is.
void Trainer::rebalance(StepRecord& record) {
  const bool stops = record.global.stop_requested || skipped_in_a_row_ > 0;
  rebalancer_.after_step(record, stops ? 0 : last_step_ - record.step);
}

// The mask of the step to come; said where it is another one than that of the step before.
void Trainer::begin_stage() {
  const Trained trained = trained_at(stages_, progress_.step);
  freeze_all_but(trained, worker_.store());
  const bool changes = progress_.step == 0 || trained != trained_at(stages_, progress_.step - 1);
  if (log_ && stages_.size() > 1 && changes) {
    log_->note(fmt::format("stage {} from step {} on", name_of(trained), progress_.step + 1));
  }
}

StepRecord Trainer::step(StepWork work, bool may_move) {
  const int64_t begin_ns = trace_clock_ns();
  const TraceSpan span(worker_.job().tracer(), TraceKind::step, {.step = work.step, .phase = "step"});
  TraceRecorder& recorder = tracer_.recorder();
  recorder.take_totals();  // what evaluation and saving waited is not this step's
  worker_.poller().take_count();
  worker_.job().tracer().switch_to({.step = work.step});
  const Communicator& world = worker_.world();
  const TrainConfig& train = config_.train;

  StepRecord record;
  record.step = work.step;
  record.save_ms = saver_.take_stall_ms();
  record.steps = train.steps;
  record.moe_layers = moe_layers_;
  worker_.gradients().start_values();
  if (may_move) rebalancer_.begin_step();
  LocalStep local = empty_local_step(config_.model);
  local.last_step_ms = last_step_ms_;
  local.last_wait_ms = last_wait_ms_;
  std::optional<StepReduction> reduction;
  // The metrics are known then; they travel while the last backward pass runs.
  work.forwards_done = [&] {
    const int64_t reduction_begin_ns = trace_clock_ns();
    worker_.job().tracer().switch_to({.step = work.step, .phase = "metrics"});
    local.stop_requested = stop_requested();
    reduction.emplace(world, local);
    record.balance_ms += milliseconds(reduction_begin_ns);
  };
  work.forward_done = routing_.watch();
  pass(work, local, config_.parallel.overlap ? Overlap::on : Overlap::off);
  routing_.end();
  loss_sum_ = local.loss_sum;

  const int64_t reduction_begin_ns = trace_clock_ns();
  worker_.lane().enter("metrics");
  worker_.await(reduction->request());
  record.global = reduction->finish();
  record.balance_ms += milliseconds(reduction_begin_ns);
  record.grad_norm = gradient_norm(worker_);
  rebalancer_.end_passes(record, last_step_ - record.step);
  record.learning_rate = learning_rate_at(train, progress_.step);
  const bool updates = is_finite(record);
  if (updates) {
    skipped_in_a_row_ = 0;
    worker_.lane().enter("optimizer");
    optimizer_.update(worker_.kernels(), record.learning_rate, clip_factor(record.grad_norm, train.grad_clip),
                      record.step);
    worker_.gradients().mark_values_changed();
  }
  rebalancer_.end_update();
  if (updates) {
    update_routers(record.global);
  } else {
    skip(work, record);
  }
  record.skipped_steps = static_cast<int64_t>(optimizer_.skipped_steps().size());
  ++progress_.step;
  progress_.tokens_seen += train.batch * config_.data.sequence_length;
  record.tokens_so_far = progress_.tokens_seen;
  progress_.data = train_reader_.advance(progress_.data, train.batch);

  recorder.end();
  record.polls = worker_.poller().take_count();
  record.step_ms = last_step_ms_ = milliseconds(begin_ns);
  last_wait_ms_ = static_cast<double>(recorder.take_totals()[static_cast<size_t>(TraceKind::wait)]) * 1e-6;
  return record;
}

bool Trainer::is_finite(const StepRecord& record) const {
  return std::isfinite(record.global.loss) && std::isfinite(record.global.mtp_loss) && std::isfinite(record.grad_norm);
}

// All ranks skip alike, as they see the same loss and norm.
void Trainer::skip(const StepWork& work, const StepRecord& record) {
  optimizer_.skip(record.step);
  ++skipped_in_a_row_;
  const NonFinite found = find_non_finite(worker_, executor_, work);
  for (const auto& [layer, router] : routers_here()) router->take_statistics();
  const std::string what = fmt::format("step {}: loss {}, gradient norm {}: {}", record.step, record.global.loss,
                                       record.grad_norm, found.what);
  if (log_) {
    log_->note(fmt::format("warning: skipped {} ({} in a row, {} in all)", what, skipped_in_a_row_,
                           optimizer_.skipped_steps().size()));
  }
  if (!found.in_weights && skipped_in_a_row_ < config_.train.max_skipped_steps) return;
  saver_.finish();
  const auto latest = latest_checkpoint(checkpoint_root(config_));
  throw Error(ErrorKind::numerics,
              found.in_weights ? what : fmt::format("{} steps in a row were skipped; {}", skipped_in_a_row_, what),
              fmt::format("lower train.learning_rate or train.grad_clip{}",
                          latest ? "; the same command goes on from " + latest->path.string() : ""));
}

void Trainer::update_routers(const GlobalStep& global) {
  worker_.kernels().synchronize();  // they write buffers of routers
  for (const auto& [layer, router] : routers_here()) {
    std::vector<int64_t> statistics = router->take_statistics();
    worker_.gradients().sum_over_stage(worker_.model().stage_with(layer)->place().index, statistics);
    const auto mixture = std::ranges::find(moe_layers_, layer) - moe_layers_.begin();
    router->update(statistics, global.expert_counts[static_cast<size_t>(mixture)], config_.model.bias_update_rate);
  }
}

std::vector<std::pair<int, Router*>> Trainer::routers_here() {
  std::vector<std::pair<int, Router*>> routers;
  for (const int layer : moe_layers_) {
    Stage* stage = worker_.model().stage_with(layer);
    if (stage != nullptr) routers.emplace_back(layer, &stage->block(layer).moe().router());
  }
  return routers;
}

}  // namespace cadre
