// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/trainer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <utility>

#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/data/token_source.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/resume.hpp"
#include "runtime/train/run_folder.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

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
  return std::ranges::any_of(mixture_entries(data), [](const MixtureEntry& entry) { return holds_tokens(entry.path); });
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
      rebalancer_(worker_, config_, optimizer_),
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
    if (progress_.step == 0 && !has_adapters(whole_) && !whole_.train.init.empty()) {
      start_from_weights(worker_, whole_, notes);
    }
  }
  if (has_adapters(whole_)) {
    start_from_weights(worker_, progress_.step == 0 ? whole_ : on_kept_base(whole_), notes);
    if (progress_.step == 0) start_from_adapters(worker_, whole_, notes);
  }
  check_agreement();
  routing_.check_files(progress_.step + 1, last_step_);
  if (whole_.train.patience > 0) {
    best_.emplace(worker_.world(), config_.out, progress_.step, whole_.train.patience, whole_.train.eval_every);
  }
  if (worker_.world().rank() == 0) {
    prepare_folder(whole_);
    if (has_adapters(whole_) && progress_.step == 0) {
      if (std::string told = keep_base(whole_); !told.empty()) notes.push_back(std::move(told));
    }
    log_.emplace(config_.out, steps_done(), config_.log);
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
  note(routing_.report());
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
  if (has_adapters(config_))
    state.adapter_config =
        adapter_config_json(config_.model, adapter_options(config_), base_of_adapters(config_).string());
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

}  // namespace cadre
