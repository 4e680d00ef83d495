// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/saver.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/base/trace.hpp"
#include "runtime/checkpoint/directory.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

double milliseconds_since(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6; }

// Adds the time of a scope to each of two sums.
class Stall {
 public:
  Stall(double& one, double& other) : one_(one), other_(other) {}
  ~Stall() {
    const double ms = milliseconds_since(begin_ns_);
    one_ += ms;
    other_ += ms;
  }
  Stall(const Stall&) = delete;
  Stall& operator=(const Stall&) = delete;

 private:
  double& one_;
  double& other_;
  int64_t begin_ns_ = trace_clock_ns();
};

// Room for the copy of what this rank saves, touched now, so that no save waits for pages.
std::shared_ptr<Buffer> make_space(const ParameterStore& store, const Optimizer& optimizer,
                                   const ParameterChoice& saves) {
  size_t bytes = 0;
  for (const auto& tensors : {name_values(store, saves), name_copies(store, saves), name_moments(optimizer, saves)}) {
    bytes += CheckpointSave::copy_bytes(tensors);
  }
  auto space = std::make_shared<Buffer>(bytes);
  if (bytes > 0) std::memset(space->data(), 0, bytes);
  return space;
}

std::string what_stands(const fs::path& root) {
  const auto latest = latest_checkpoint(root);
  return latest ? fmt::format("{} stands", latest->path.string()) : "there is none yet";
}

}  // namespace

fs::path checkpoint_root(const RunConfig& config) { return fs::path(config.out) / "checkpoints"; }

Saver::Saver(Worker& worker, const RunConfig& config, const Optimizer& optimizer, Say say)
    : worker_(worker), config_(config), optimizer_(optimizer), say_(std::move(say)) {
  if (!config.checkpoint.async) return;
  own_world_.emplace(worker.world().duplicate("checkpoint"));
  space_ = make_space(worker.store(), optimizer, saved_here());
}

ParameterChoice Saver::saved_here() const {
  return [this](const Parameter& parameter) { return worker_.saves(parameter); };
}

void Saver::save(const CheckpointState& state) {
  if (save_ && worker_.world().rank() == 0) {
    say_(fmt::format("note: the checkpoint of step {} waits for that of step {}, which is still being written",
                     state.manifest.step, step_));
  }
  finish();
  const CheckpointRanks ranks = {.world = own_world_ ? *own_world_ : worker_.world(),
                                 .writes = saved_here(),
                                 .deadline_seconds = std::max(worker_.deadline_seconds(), kFileDeadlineSeconds)};
  step_ = state.manifest.step;
  begin_ns_ = trace_clock_ns();
  stall_ms_ = 0.0;
  {
    const Stall stall(stall_ms_, untaken_stall_ms_);
    save_.emplace(ranks, checkpoint_root(config_), state, worker_.store(), optimizer_,
                  KeepRule{static_cast<size_t>(config_.checkpoint.keep), config_.checkpoint.keep_every}, space_);
  }
  own_world_ ? poll() : finish();
}

void Saver::poll() {
  if (!save_) return;
  const bool over = [&] {
    const Stall stall(stall_ms_, untaken_stall_ms_);
    return save_->poll();
  }();
  if (over) conclude();
}

void Saver::finish() {
  if (!save_) return;
  {
    const Stall stall(stall_ms_, untaken_stall_ms_);
    save_->finish();
  }
  conclude();
}

void Saver::conclude() {
  const SaveOutcome outcome = save_->outcome();
  save_.reset();
  const std::optional<Failure>& failure = outcome.failure;
  if (failure && failure->kind == ErrorKind::internal) throw failure->error("saving a checkpoint");
  failure_ = outcome.path.empty() ? failure : std::nullopt;
  if (worker_.world().rank() != 0) return;
  if (failure_) {
    say_(fmt::format("warning: the checkpoint of step {} was not saved: rank {}: {}; {}, the run goes on", step_,
                     failure->rank, failure->text, what_stands(checkpoint_root(config_))));
    return;
  }
  const std::string whole = fmt::format(", {:.1f} ms in the background", milliseconds_since(begin_ns_) - stall_ms_);
  say_(fmt::format("saved {} | stall {:.1f} ms{}", outcome.path.string(), stall_ms_, own_world_ ? whole : ""));
  if (failure) say_(fmt::format("warning: older checkpoints were not removed: {}", failure->text));
}

void Saver::require_saved() {
  finish();
  if (!failure_) return;
  throw Error(ErrorKind::environment,
              fmt::format("the last checkpoint, of step {}, could not be saved: rank {}: {}", step_, failure_->rank,
                          failure_->text),
              fmt::format("{}; the same command goes on from the checkpoint that stands", failure_->hint));
}

double Saver::take_stall_ms() { return std::exchange(untaken_stall_ms_, 0.0); }

}  // namespace cadre
