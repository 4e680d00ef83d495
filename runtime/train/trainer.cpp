// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/trainer.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <utility>

#include "comm/base/trace.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/data/token_source.hpp"
#include "runtime/optim/lr_schedule.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/non_finite.hpp"
#include "runtime/train/resume.hpp"
#include "runtime/train/signals.hpp"
#include "runtime/train/step.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

double milliseconds(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6; }

// Rank 0 only. A run that is over there is over no more.
void prepare_folder(const RunConfig& config) {
  std::error_code error;
  fs::create_directories(config.out, error);
  CADRE_CHECK(!error, fmt::format("out = {} cannot be created: {}", config.out, error.message()),
              "name a folder that can be written with out=PATH");
  write_text_file(fs::path(config.out) / "run.toml", to_toml(config));
  fs::remove(fs::path(config.out) / "FINISHED");
}

bool reads_token_files(const DataConfig& data) {
  return std::ranges::any_of(mixture_entries(data),
                             [](const MixtureEntry& entry) { return is_token_file(entry.path); });
}

// Freezes what the stage of progressive training does not train, and nothing else.
void freeze_all_but(Trained trained, const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    parameter->frozen = !trains(trained, part_of_parameter(parameter->name()));
  }
}

Worker make_worker(Communicator world, const RunConfig& config, const KernelMaker& make_kernels) {
  WorkerOptions options = training_options(config, world);
  options.make_kernels = make_kernels;
  return Worker(std::move(world), options);
}

}  // namespace

Trainer::Trainer(Communicator world, const RunConfig& config, PartnerCopies* copies, const KernelMaker& make_kernels,
                 int64_t first_step)
    : whole_(config),
      config_(config_at(config, first_step)),
      last_step_(last_step_like(config, first_step)),
      tokenizer_files_(read_tokenizer_files(config_.data.tokenizer)),
      tokens_are_bytes_(config_.data.tokenizer == kByteTokenizer && !reads_token_files(config_.data)),
      dataset_(open_dataset(config_.data, config_.model)),
      labeller_(make_task_labeller(config_)),
      worker_(make_worker(std::move(world), config_, make_kernels)),
      train_reader_(dataset_.train, config_.data.sequence_length, config_.train.batch,
                    static_cast<uint64_t>(config_.seed)),
      executor_(worker_, program_of(config_)),
      optimizer_(worker_.store(), config_.train,
                 [this](const Parameter& parameter) { return worker_.shards().keeps(parameter); }),
      stages_(train_stages(config_.train)),
      tracer_(config_, executor_.program(), worker_, config_hash(config_)),
      trace_scope_(worker_.job().tracer(), tracer_.recorder()),
      saver_(worker_, config_, optimizer_, [this](const std::string& line) { log_->note(line); }),
      copies_(copies) {
  worker_.store().initialise(static_cast<uint64_t>(config_.seed));
  const bool from_copies = resume_from_copies();
  std::vector<std::string> notes;
  if (!from_copies) {
    const uint64_t fingerprint = worker_.world().rank() == 0 ? cadre::fingerprint(dataset_.train) : 0;
    Resumed resumed = resume_from_checkpoint(worker_, optimizer_, whole_, train_reader_, fingerprint, tokenizer_files_);
    progress_ = resumed.progress;
    saved_step_ = progress_.step;
    notes = std::move(resumed.notes);
    if (progress_.step == 0 && !whole_.train.init.empty()) start_from_weights(worker_, whole_, notes);
  }
  check_agreement();
  if (whole_.train.patience > 0) {
    best_.emplace(worker_.world(), config_.out, progress_.step, whole_.train.patience, whole_.train.eval_every);
  }
  if (worker_.world().rank() == 0) {
    prepare_folder(whole_);
    log_.emplace(config_.out, steps_done(), config_.log.every,
                 config_.log.metrics == "csv" ? RunLog::Metrics::jsonl_and_csv : RunLog::Metrics::jsonl);
    if (!is_of_next_step()) return;
    if (steps_done() > 0)
      log_->note(fmt::format("resumed after step {}{}", steps_done(), from_copies ? ", from copies in memory" : ""));
    for (const std::string& note : notes) log_->note("note: " + note);
    tell_plan();
  }
}

// What begins or ends with the step to come.
void Trainer::tell_plan() {
  for (const StepChange& change : whole_.changes) {
    if (change.step != steps_done() + 1) continue;
    log_->note(fmt::format("note: from step {} on: {} = {}", change.step, change.key, value_text(change.value)));
  }
  if (steps_done() > config_.train.steps) {
    log_->note(fmt::format("note: train.steps = {}, and {} are done: nothing is left to train", config_.train.steps,
                           steps_done()));
  }
}

bool Trainer::is_of_next_step() const {
  return steps_done() >= config_.train.steps || last_step_like(whole_, steps_done() + 1) == last_step_;
}

RunEnd Trainer::run() {
  try {
    return run_steps();
  } catch (...) {
    keep_trace();
    throw;
  }
}

// The error that ends the run matters more than one that its trace meets.
void Trainer::keep_trace() {
  try {
    note(tracer_.stop_alone(progress_.step + 1));
  } catch (const std::exception&) {
  }
}

RunEnd Trainer::run_steps() {
  const TrainConfig& train = config_.train;
  const auto due = [&](int64_t every) { return every > 0 && progress_.step % every == 0; };
  const auto evaluation_due = [&] { return progress_.step == train.steps || due(train.eval_every); };
  // A save comes before the evaluation of its step; the run may have ended between the two.
  if (progress_.step > 0 && evaluation_due()) evaluate_and_log();
  const auto is_over = [&] { return best_ && best_->is_over(progress_.step); };
  while (progress_.step < last_step_ && !stop_requested_ && !is_over()) {
    const StepRecord record = step();
    if (log_) log_->step(record);
    saver_.poll();
    stop_requested_ = record.global.stop_requested;
    // What a skipped step leaves may be what made it bad: it must not push out the checkpoints of better steps.
    const bool save_due = due(config_.checkpoint.every) && skipped_in_a_row_ == 0;
    const bool is_last = progress_.step == last_step_;
    if (is_last || stop_requested_ || save_due) save();
    if (copies_ != nullptr && (is_last || due(config_.checkpoint.partner_every))) {
      worker_.gradients().complete_values();
      copies_->take(worker_.world(), worker_.deadline_seconds(), progress_, worker_.store(), optimizer_,
                    [this](const Parameter& parameter) { return worker_.shards().keeps_alone(parameter); });
    }
    // The trainer of the steps that follow evaluates what it goes on from.
    const bool goes_on = is_last && progress_.step < train.steps;
    if (!stop_requested_ && !goes_on && evaluation_due()) evaluate_and_log();
  }
  if (stop_requested_) {
    stop();
    return RunEnd::stopped;
  }
  if (is_over() && saved_step_ != progress_.step) save();
  saver_.require_saved();
  if (log_) log_->summary();
  if (is_over() && progress_.step < train.steps) {
    note(fmt::format("no lower validation loss than {:.4f} since step {}: the run ends; checkpoints/best has that step",
                     best_->loss(), best_->step()));
  } else if (progress_.step < train.steps) {
    note(tracer_.stop(progress_.step));
    return RunEnd::other_config;
  }
  if (log_) write_text_file(fs::path(config_.out) / "FINISHED", fmt::format("{}\n", progress_.step));
  return RunEnd::finished;
}

void Trainer::evaluate_and_log() {
  const std::optional<double> loss = held_out_loss();
  if (log_ && loss) log_->evaluation(progress_.step, *loss);
  if (best_ && loss) keep_best(*loss);
}

void Trainer::keep_best(double loss) {
  if (!best_->add(progress_.step, loss)) return;
  if (saved_step_ != progress_.step) save();
  saver_.finish();
  if (worker_.world().rank() != 0) return;
  mark_best(checkpoint_root(config_), progress_.step);
  best_->write();
}

void Trainer::note(const std::string& line) {
  if (log_ && !line.empty()) log_->note(line);
}

void Trainer::stop() {
  note(tracer_.stop(progress_.step));
  if (saved_step_ != progress_.step) save();
  saver_.require_saved();
  if (log_)
    log_->note(fmt::format("stopped by a signal after step {}; the same command goes on from there", progress_.step));
}

StepWork Trainer::work_of_step() const {
  const TrainConfig& train = config_.train;
  const int64_t length = config_.data.sequence_length;
  const auto range_of = [this, &train](int micro_batch) {
    const SequenceRange global = part_of({0, train.batch}, micro_batch, train.micro_batches);
    return part_of(global, worker_.data_rank(), worker_.grid().data);
  };
  StepWork work;
  work.step = progress_.step + 1;
  work.seed = static_cast<uint64_t>(config_.seed);
  work.token_scale = 1.0 / static_cast<double>(train.batch * length);
  const double weight = train_reader_.weight_of_batch(progress_.data, train.batch);
  work.loss_scale = weight > 0.0 ? 1.0 / weight : 0.0;
  work.read = [this, range_of, length](int i) {
    MicroBatch micro_batch(train_reader_, progress_.data, progress_.step, range_of(i), length);
    micro_batch.recognise_tasks(labeller());
    return micro_batch;
  };
  work.num_tokens = [range_of, length](int i) { return range_of(i).count * length; };
  return work;
}

void Trainer::pass(const StepWork& work, LocalStep& local, Overlap overlap) {
  const TraceSpan span(worker_.job().tracer(), TraceKind::op, {.step = work.step, .phase = "passes"});
  worker_.store().forget_grads();
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
    pass(work, local, Overlap::off);
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
  if (!tracer_.traces(work.step)) return step(work);
  tracer_.begin(work.step);
  std::optional<Outcome> serial;
  if (config_.trace.compare) serial = pass_without_overlap(work);
  begin_together();
  StepRecord record = step(work);
  // Gradients stay until the next step.
  if (serial && skipped_in_a_row_ == 0) check_same(*serial, outcome_of(loss_sum_));
  note(tracer_.end(work.step));
  return record;
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

StepRecord Trainer::step(StepWork work) {
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
  pass(work, local, config_.parallel.overlap ? Overlap::on : Overlap::off);
  loss_sum_ = local.loss_sum;

  const int64_t reduction_begin_ns = trace_clock_ns();
  worker_.lane().enter("metrics");
  worker_.await(reduction->request());
  record.global = reduction->finish();
  record.balance_ms += milliseconds(reduction_begin_ns);
  record.grad_norm = gradient_norm(worker_);
  record.learning_rate = learning_rate_at(train, progress_.step);
  if (is_finite(record)) {
    skipped_in_a_row_ = 0;
    worker_.lane().enter("optimizer");
    optimizer_.update(worker_.kernels(), record.learning_rate, clip_factor(record.grad_norm, train.grad_clip),
                      record.step);
    worker_.gradients().mark_values_changed();
    update_routers(record.global);
  } else {
    skip(work, record);
  }
  record.skipped_steps = static_cast<int64_t>(optimizer_.skipped_steps().size());
  ++progress_.step;
  progress_.tokens_seen += train.batch * config_.data.sequence_length;
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

double Trainer::evaluate() { return held_out_loss().value_or(std::nan("")); }

std::optional<double> Trainer::held_out_loss() {
  if (!holds_out_data(config_.data)) return std::nullopt;
  worker_.gradients().complete_values();
  const BatchReader reader(dataset_.validation, config_.data.sequence_length, config_.train.batch,
                           static_cast<uint64_t>(config_.seed));
  const Evaluation evaluation = cadre::evaluate(worker_, reader, config_, config_.train.eval_batches, labeller());
  stop_requested_ |= evaluation.stop_requested;
  if (evaluation.loss_weight == 0.0) return std::nullopt;  // given up for a signal
  return evaluation.loss;
}

void Trainer::save() {
  worker_.gradients().complete_values();
  CheckpointState state;
  state.model = config_.model;
  state.run_toml = to_toml(whole_);
  state.more_files = companion_files(config_.model, tokenizer_files_, tokens_are_bytes_);
  state.manifest.cadre_version = CADRE_VERSION;
  state.manifest.step = progress_.step;
  state.manifest.seed = static_cast<uint64_t>(config_.seed);
  state.manifest.tokens_seen = progress_.tokens_seen;
  state.manifest.data = progress_.data;
  state.manifest.updates = optimizer_.updates();
  state.manifest.world_size = worker_.world().size();
  state.manifest.trained = name_of(trained_at(stages_, std::max<int64_t>(0, progress_.step - 1)));
  state.manifest.skipped_steps = optimizer_.skipped_steps();
  state.manifest.config_hash = config_hash(config_);
  saver_.save(state);
  saved_step_ = progress_.step;
}

bool Trainer::resume_from_copies() {
  if (copies_ == nullptr) return false;
  const std::optional<TrainProgress> progress =
      copies_->restore(worker_.world(), worker_.deadline_seconds(), worker_.store(), optimizer_);
  if (progress) progress_ = *progress;
  return progress.has_value();
}

// Every rank reads data and checkpoint for itself; a rank that sees other files must not train along.
void Trainer::check_agreement() {
  const int64_t tokens = num_tokens(dataset_.train);
  const std::array<int64_t, 4> mine = {progress_.step, tokens, -progress_.step, -tokens};
  const auto least =
      wait(worker_.world().all_reduce(mine, ReduceOp::min), kFileDeadlineSeconds, worker_.lane().position);
  CADRE_CHECK(
      least[0] == -least[2] && least[1] == -least[3],
      fmt::format("rank {} starts after step {} with {} training tokens; over the ranks the steps are {} to {}, the "
                  "tokens {} to {}",
                  worker_.world().rank(), progress_.step, tokens, least[0], -least[2], least[1], -least[3]),
      "all ranks must see the same data and the same out folder");
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
