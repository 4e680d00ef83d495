// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/step_tracer.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <sstream>
#include <thread>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/host_name.hpp"
#include "comm/group/agreement.hpp"
#include "runtime/observe/trace_file.hpp"
#include "runtime/train/saver.hpp"

namespace cadre {
namespace {

// About 64 bytes each. A step of some tens of layers and micro-batches has some ten thousand.
constexpr size_t kEventsOfARank = size_t{1} << 19;

constexpr std::chrono::seconds kOthersTime{2};  // for the traces of other ranks, when an error ends the job

}  // namespace

std::set<int> ranks_named(const std::string& text, int num_ranks) {
  std::set<int> ranks;
  if (text == "all") {
    for (int rank = 0; rank < num_ranks; ++rank) ranks.insert(rank);
    return ranks;
  }
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int rank = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), rank);
    const bool is_number = error == std::errc() && end == part.data() + part.size();
    CADRE_CHECK(is_number && rank >= 0 && rank < num_ranks,
                fmt::format("trace.ranks = {}, allowed: all, or ranks from 0 to {} with commas", text, num_ranks - 1),
                "for example trace.ranks=0,1");
    ranks.insert(rank);
  }
  CADRE_CHECK(!ranks.empty(), "trace.ranks = \"\", allowed: all, or ranks with commas", "all is the default");
  return ranks;
}

StepTracer::StepTracer(const RunConfig& config, const Program& program, const Worker& worker, std::string config_hash)
    : worker_(worker),
      run_dir_(config.out),
      config_(config.trace),
      last_step_(std::min(config.trace.first_step + config.trace.steps - 1, config.train.steps)),
      ranks_(ranks_named(config.trace.ranks, worker.world().size())),
      run_{.cadre_version = CADRE_VERSION,
           .mpi = worker.world().transport().library(),
           .num_ranks = worker.world().size(),
           .num_hosts = discover_topology(worker.world()).num_hosts(),
           .pipeline = worker.grid().pipeline,
           .data = worker.grid().data,
           .expert = worker.grid().expert,
           .schedule = program.name,
           .num_micro_batches = program.num_micro_batches,
           .exchange = worker.exchange_name(),
           .threads = static_cast<int>(config.compute.threads),
           .seed = config.seed,
           .config_hash = std::move(config_hash)},
      recorder_(config.trace.first_step > 0 ? kEventsOfARank : 0) {
  recorder_.keep(false);
}

bool StepTracer::traces(int64_t step) const {
  return config_.first_step > 0 && step >= config_.first_step && step <= last_step_;
}

void StepTracer::begin(int64_t step) {
  if (begun_at_ == 0) begin_first(step);
  recorder_.keep(true);
}

// Traces of an earlier run must not be taken for this one's.
void StepTracer::begin_first(int64_t step) {
  begun_at_ = step;
  if (worker_.world().rank() == 0) {
    std::error_code ignored;  // what cannot be removed is overwritten, or refused by the report
    const std::filesystem::path folder = run_dir_ / "trace";
    if (step > config_.first_step) {
      const std::filesystem::path kept = run_dir_ / fmt::format("trace.before_step_{}", step);
      std::filesystem::remove_all(kept, ignored);
      std::filesystem::rename(folder, kept, ignored);
    }
    std::filesystem::remove_all(folder, ignored);
  }
  offsets_.begin = measure_clock_offset(worker_.world(), worker_.deadline_seconds());
}

std::string StepTracer::end(int64_t step) {
  recorder_.keep(false);
  return step == last_step_ ? write_all(step) : "";
}

std::string StepTracer::stop(int64_t step) { return begun_at_ == 0 || is_over_ ? "" : write_all(step); }

// A disk that is full must not end a run for want of its trace. Half of the traces would be of no use.
std::string StepTracer::write_all(int64_t step) {
  is_over_ = true;
  offsets_.end = measure_clock_offset(worker_.world(), worker_.deadline_seconds());
  const auto failure = attempt_together(worker_.world(), std::max(worker_.deadline_seconds(), kFileDeadlineSeconds),
                                        "traces", [this] { write(); });
  if (failure && failure->kind == ErrorKind::internal) throw failure->error("writing the traces");
  is_written_ = !failure;
  const std::string steps = fmt::format("steps {} to {}", begun_at_, step);
  if (is_written_) return fmt::format("traces of {}, {}, in {}/trace", config_.ranks, steps, run_dir_.string());
  if (worker_.world().rank() == 0) {
    std::error_code ignored;  // the warning says what is missing
    std::filesystem::remove_all(run_dir_ / "trace", ignored);
  }
  return fmt::format("warning: the traces of {} were not written: rank {}: {}; the run goes on", steps, failure->rank,
                     failure->text);
}

std::string StepTracer::stop_alone(int64_t step) {
  if (begun_at_ == 0 || is_over_) return "";
  is_over_ = true;
  recorder_.end();
  recorder_.keep(false);
  offsets_.end = offsets_.begin;
  const std::string steps = fmt::format("steps {} to {}", begun_at_, step);
  try {
    if (ranks_.contains(worker_.world().rank())) {
      RankTrace mine = trace();
      std::erase_if(mine.events, [step](const TracedEvent& event) {
        return event.kind == TraceKind::step && event.step == step && event.phase == "step";
      });
      write_trace(run_dir_, mine);
    }
    await_others();
  } catch (const Error& error) {
    return fmt::format("warning: the trace of {} was not written: {}", steps, error.text());
  }
  return fmt::format("traces of {}, {}, as far as they got, in {}/trace", config_.ranks, steps, run_dir_.string());
}

void StepTracer::await_others() const {
  const auto end = std::chrono::steady_clock::now() + kOthersTime;
  const auto is_written = [this](int rank) {
    std::error_code unknown;
    return std::filesystem::exists(trace_path(run_dir_, rank), unknown);
  };
  while (!std::ranges::all_of(ranks_, is_written) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

RankTrace StepTracer::trace() const {
  return to_rank_trace(recorder_, run_, worker_.world().rank(), host_name(), offsets_);
}

void StepTracer::write() const {
  if (ranks_.contains(worker_.world().rank())) write_trace(run_dir_, trace());
}

}  // namespace cadre
