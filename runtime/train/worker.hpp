// SPDX-License-Identifier: Apache-2.0
// What one rank of a job holds: its place in the grid, its groups, its back end, its stages of the model, and the lanes
// that micro-batches run on. Training, evaluation and inference all stand on it.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "comm/exchange/choose.hpp"
#include "comm/group/grid.hpp"
#include "comm/group/holder_sum.hpp"
#include "comm/progress/engine.hpp"
#include "comm/progress/progress_thread.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/train/pipeline_routes.hpp"

namespace cadre {

// Makes the back end of a worker, in place of that which a configuration names.
using KernelMaker = std::function<std::unique_ptr<Kernels>()>;

struct WorkerOptions {
  ModelConfig model;
  ParallelConfig parallel;
  ExchangeConfig exchange;
  ComputeConfig compute;
  PipelineRoutes routes = {};  // where the stages are; the rows of the grid are their ranks
  bool with_grad = true;
  RowBits row_bits = RowBits::independent;  // of products with weights without gradient
  int64_t max_tokens = 0;                   // that one forward pass on this rank is expected to take
  size_t activation_bytes = 0;              // that it is expected to need; 0: not known
  int num_lanes = 1;                        // micro-batches under way at once, the same on all ranks
  KernelMaker make_kernels = {};            // none: what `compute` says
};

// All that one micro-batch under way has for itself.
struct LaneSpace {
  Lane lane;
  std::unique_ptr<Exchange> exchange;
  Arena arena;  // its activations
};

Precision precision_of(const ComputeConfig& config);
CombineMode combine_mode(const ExchangeConfig& config);
WireFormats wire_formats(const ExchangeConfig& config);

// Whether `rank` is the first of the ranks that hold `parameter`, which is of `stage`: the one that saves it, and counts
// it in sums.
bool is_first_holder(const Parameter& parameter, int stage, const PipelineRoutes& routes, const Grid& grid, int rank);

class Worker {
 public:
  // Collective over `world`. Parameters have memory and no values yet.
  Worker(Communicator world, const WorkerOptions& options);

  const Grid& grid() const { return grid_; }
  const PipelineRoutes& routes() const { return routes_; }
  const Communicator& world() const { return world_; }
  // The ranks that share one set of experts with this one.
  const Communicator& expert_group() const { return spaces_.front()->lane.expert_group(); }
  // The ranks that pass micro-batches on to each other, by row of the grid.
  const Communicator& pipeline_group() const { return pipeline_group_; }
  int row() const { return grid_.stage(world_.rank()); }
  int data_rank() const { return grid_.data_rank(world_.rank()); }

  Model& model() { return model_; }
  const ExpertMaps& expert_maps() const { return maps_; }
  ParameterStore& store() { return store_; }
  const Kernels& kernels() const { return *kernels_; }
  // Whether this rank is (see above).
  bool is_first_holder(const Parameter& parameter) const;

  int num_lanes() const { return static_cast<int>(spaces_.size()); }
  Arena& arena(int lane = 0) { return space(lane).arena; }
  Lane& lane(int lane = 0) { return space(lane).lane; }
  double deadline_seconds() const { return engine_.deadline_seconds(); }
  JobContext& job() const { return world_.job(); }
  Poller& poller() const { return job().poller(); }

  // The context of a micro-batch that is trained on, its losses scaled by `token_scale`, and of one that is not.
  LaneContext training_context(double token_scale, DeferredQueue& deferred, int lane);
  LaneContext inference_context();
  std::string exchange_name() const { return std::string(spaces_.front()->exchange->name()); }
  const std::string& exchange_reason() const { return exchange_reason_; }  // why this strategy
  // Why the thread for progress that was asked for does not run; else empty.
  const std::string& progress_note() const { return progress_note_; }
  // Runs tasks, each on its lane, to their end; they take turns at their waits, which `filler` fills.
  void run(std::vector<Engine::Run> runs, DeferredQueue* filler = nullptr) const {
    engine_.run(std::move(runs), filler);
  }
  void run(Task<void>& task) { engine_.run(lane(), task); }
  // Waits for a request of this rank outside of a task.
  void await(Request& request) const { wait(request, engine_.deadline_seconds(), spaces_.front()->lane.position); }
  template <class T>
  T await(Pending<T> pending) const {
    return wait(std::move(pending), engine_.deadline_seconds(), spaces_.front()->lane.position);
  }

  // Starts to sum the gradients of a bucket of a stage over the ranks that hold the same parameters, also as replicas of
  // an expert. Collective over them:
  // all reduce the buckets of a stage in the same order, each once a step, and finish together.
  void start_gradient_reduction(int stage, int bucket);
  void finish_gradient_reduction();
  // Adds up over all ranks that hold a stage. Collective over them; all pass as many values.
  void sum_over_stage(int stage, std::vector<int64_t>& values) const;
  // Of all gradients on this rank, bit by bit.
  uint64_t gradient_hash() const;

 private:
  // For one stage: the ranks that hold it, and those that hold the same experts of it.
  struct ReductionGroups {
    Communicator shared;
    Communicator expert;
  };

  LaneSpace& space(int lane) { return *spaces_[static_cast<size_t>(lane)]; }
  void start_progress(const WorkerOptions& options);
  void make_exchanges(const WorkerOptions& options);
  ExchangeSetup exchange_setup(const LaneSpace& space, const WorkerOptions& options) const;
  void make_exchange_of(LaneSpace& space, const WorkerOptions& options);
  void make_arenas(const WorkerOptions& options);
  void make_reduction_groups();
  std::vector<Request> start_sum(const Communicator& group, Placement placement, int stored_bucket);
  std::vector<HeldValues> replicated_grads(int stored_bucket);
  std::vector<HeldValues> embedding_grads(Stage& stage, int stored_bucket);
  void add_embedding_copy();
  void fill_store(bool with_grad);
  size_t local_index(int stage) const;

  Communicator world_;
  PipelineRoutes routes_;
  Grid grid_;
  Communicator pipeline_group_;
  Engine engine_;
  std::unique_ptr<Kernels> kernels_;
  bool transport_follows_ = false;  // what the kernels launch
  std::vector<std::unique_ptr<LaneSpace>> spaces_;
  std::string exchange_reason_;
  CombineMode combine_;
  WireFormats wire_;
  ExpertMaps maps_;
  Model model_;
  ParameterStore store_;
  std::vector<ReductionGroups> reduction_groups_;  // by stage of this rank, ascending
  std::optional<Communicator> replica_group_;      // the expert-parallel one, where experts have replicas
  std::optional<Communicator> embedding_group_;  // as pipeline_group(), where its first and last row hold the embedding
  std::vector<int> embedding_rows_;              // these two
  std::vector<int> first_bucket_;                // in the store, the same
  std::vector<const Parameter*> first_held_;     // sorted
  std::deque<Request> reductions_;               // under way; does not move them
  std::string progress_note_;
  std::unique_ptr<ProgressThread> progress_thread_;  // last: it drives the transport of world_
};

}  // namespace cadre
