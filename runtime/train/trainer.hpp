// SPDX-License-Identifier: Apache-2.0
// The training run of one rank: steps, evaluation, checkpoints, logs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/trace.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/partner_copies.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/data/order.hpp"
#include "runtime/observe/run_log.hpp"
#include "runtime/observe/step_metrics.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/executor.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/rebalancer.hpp"
#include "runtime/train/saver.hpp"
#include "runtime/train/schedule_choice.hpp"
#include "runtime/train/step_routing.hpp"
#include "runtime/train/step_tracer.hpp"

namespace cadre {

// Why Trainer::run() returned; the same on all ranks.
enum class RunEnd {
  finished,
  stopped,       // by a signal
  other_config,  // the next step has another configuration (see step_changes.hpp): a new trainer goes on with it
};

class Trainer {
 public:
  // Collective over `world`. Opens the data, builds the model, resumes when the configuration and the output folder say
  // so. Throws before the first step on anything that cannot run. `copies` outlives the trainer: what one that lost ranks
  // left there is what the next goes on from. Where [from_step.N] changes the configuration, the trainer is built for that
  // of `first_step`; is_of_next_step() says whether that was right.
  Trainer(Communicator world, const RunConfig& config, PartnerCopies* copies = nullptr,
          const KernelMaker& make_kernels = {}, int64_t first_step = 1);

  // Whether the next step has the configuration that the trainer was built for, or none is left.
  bool is_of_next_step() const;

  // The run checks the forecast once, with a step that it runs serially too, and says where it was wrong.
  void expect(const StepForecast& forecast) { forecast_.emplace(forecast, last_step_ - progress_.step); }

  // Runs all steps that are left and have its configuration, evaluates and saves; after the last step of all, or where
  // train.patience ends the run, marks it as finished. When a rank was asked to stop (StopSignals), all ranks save after the
  // same step and return, and the run is not marked. An error inside a traced window: each rank writes its trace as far as it
  // got, then the error is thrown.
  RunEnd run();

  // One optimiser step; the result is the same on all ranks. Without finite loss and gradient it changes nothing but the
  // number of steps done, and the last of too many such steps in a row throws ErrorKind::numerics.
  StepRecord step();

  // Mean loss in nats a token over `train.eval_batches` batches of the validation part, the same on all ranks.
  double evaluate();

  // Collective over the world. Writes out/checkpoints/step_<steps done>, in the background if the configuration says so.
  void save();
  // Collective over the world. Waits for the save under way; throws unless the last one stands.
  void require_saved() { saver_.require_saved(); }

  int64_t steps_done() const { return progress_.step; }
  // Why the schedule is not the one that was asked for; else empty.
  const std::string& schedule_note() const { return executor_.program().note; }
  const std::string& exchange_reason() const { return worker_.lanes().exchange_reason(); }
  const std::string& progress_note() const { return worker_.progress_note(); }
  const std::string& rebalance_note() const { return rebalancer_.note(); }
  Rebalancer& rebalancer() { return rebalancer_; }
  // What was replayed; a line, or "". Collective over the world.
  std::string replay_report() const { return routing_.report(); }
  // Whether the traces of all ranks lie in the folder of the run.
  bool has_traces() const { return tracer_.is_written() && config_.trace.ranks == "all"; }
  const Dataset& dataset() const { return dataset_; }
  // After a step other ranks may have newer values of parameters: GradientReduction::complete_values() gets them.
  Worker& worker() { return worker_; }
  const Optimizer& optimizer() const { return optimizer_; }

 private:
  RunEnd run_steps();
  void keep_trace();
  bool resume_from_copies();
  void tell_plan();
  void evaluate_and_log();
  void keep_best(double loss);
  std::optional<double> held_out_loss();  // nothing without enough data, or when a signal came before its end
  void stop();
  void note(const std::string& line);  // said by rank 0, unless it is empty
  void check_agreement();
  const TaskLabeller* labeller() const { return labeller_ ? &*labeller_ : nullptr; }
  void begin_stage();
  StepRecord step(StepWork work, bool may_move);
  void rebalance(StepRecord& record);
  StepWork work_of_step();
  // The forward and backward passes of a step and the sums of gradients over ranks.
  void pass(const StepWork& work, LocalStep& local, Overlap overlap);
  // What overlap must not change.
  struct Outcome {
    uint64_t loss_bits = 0;
    uint64_t gradient_hash = 0;
    bool operator==(const Outcome&) const = default;
  };
  Outcome pass_without_overlap(StepWork work);
  Outcome outcome_of(double loss_sum);
  void check_same(const Outcome& serial, const Outcome& overlapped) const;
  void begin_together() const;
  bool is_finite(const StepRecord& record) const;
  void skip(const StepWork& work, const StepRecord& record);
  void update_routers(const GlobalStep& global);
  std::vector<std::pair<int, Router*>> routers_here();  // by layer

  RunConfig whole_;    // of all steps
  RunConfig config_;   // of those that it runs
  int64_t last_step_;  // of them
  std::vector<int> moe_layers_ = moe_layers_of(config_.model);
  TokenizerFiles tokenizer_files_;        // which every checkpoint keeps
  bool tokens_are_bytes_;                 // of text
  Dataset dataset_;                       // first: missing data is found before anything large is built
  std::optional<TaskLabeller> labeller_;  // where the run recognises tasks
  Worker worker_;
  BatchReader train_reader_;
  Executor executor_;
  Optimizer optimizer_;
  Rebalancer rebalancer_;
  StepRouting routing_{config_, worker_};
  std::vector<TrainStage> stages_;
  std::optional<RunLog> log_;  // rank 0 only
  StepTracer tracer_;
  TraceScope trace_scope_;
  Saver saver_;
  PartnerCopies* copies_;  // nullptr: none are kept
  TrainProgress progress_;
  std::optional<BestEvaluation> best_;  // with train.patience
  int64_t saved_step_ = 0;
  bool stop_requested_ = false;  // the same on all ranks
  int64_t skipped_in_a_row_ = 0;
  double last_step_ms_ = 0.0;
  double last_wait_ms_ = 0.0;
  double loss_sum_ = 0.0;  // of this rank in the last step
  std::optional<ForecastCheck> forecast_;
  double serial_passes_s_ = 0.0;  // of the last step that ran serially
};

}  // namespace cadre
