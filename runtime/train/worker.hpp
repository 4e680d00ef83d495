// SPDX-License-Identifier: Apache-2.0
// What one rank of a job holds: its place in the grid, its groups, its back end, its part of the model, and the lane
// that micro-batches run on. Training, evaluation and inference all stand on it.
#pragma once

#include <memory>

#include "comm/exchange/choose.hpp"
#include "comm/group/grid.hpp"
#include "comm/progress/engine.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter_store.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

struct WorkerOptions {
  ModelConfig model;
  ParallelConfig parallel;
  ExchangeConfig exchange;
  ComputeConfig compute;
  bool with_grad = true;
  int64_t max_tokens = 0;       // that one forward pass on this rank is expected to take
  size_t activation_bytes = 0;  // that it is expected to need; 0: not known
  int num_lanes = 1;            // micro-batches under way at once
};

// All that one micro-batch under way has for itself.
struct LaneSpace {
  Lane lane;
  std::unique_ptr<Exchange> exchange;
  Arena arena;  // its activations
};

CombineMode combine_mode(const ExchangeConfig& config);
WireFormats wire_formats(const ExchangeConfig& config);

class Worker {
 public:
  // Collective over `world`. Parameters have memory and no values yet.
  Worker(Communicator world, const WorkerOptions& options);

  const Grid& grid() const { return grid_; }
  const Communicator& world() const { return world_; }
  // The ranks that share one set of experts with this one.
  const Communicator& expert_group() const { return spaces_.front()->lane.expert_group(); }
  // The ranks that hold the same experts as this one: gradients of experts are summed over them.
  const Communicator& expert_data_group() const { return expert_data_group_; }

  Model& model() { return model_; }
  ParameterStore& store() { return store_; }
  const Kernels& kernels() const { return *kernels_; }
  int num_lanes() const { return static_cast<int>(spaces_.size()); }
  Arena& arena(int lane = 0) { return space(lane).arena; }
  Lane& lane(int lane = 0) { return space(lane).lane; }
  double deadline_seconds() const { return engine_.deadline_seconds(); }

  // The context of a micro-batch that is trained on, its losses scaled by `token_scale`, and of one that is not.
  LaneContext training_context(double token_scale, int lane = 0);
  LaneContext inference_context();
  const std::string& exchange_reason() const { return exchange_reason_; }  // why this strategy
  // Runs tasks, each on its lane, to their end; they take turns at their waits.
  void run(std::vector<Engine::Run> runs) const { engine_.run(std::move(runs)); }
  void run(Task<void>& task) { engine_.run(lane(), task); }
  // Waits for a request of this rank outside of a task.
  void await(Request& request) const { wait(request, engine_.deadline_seconds(), spaces_.front()->lane.position); }

 private:
  LaneSpace& space(int lane) { return *spaces_[static_cast<size_t>(lane)]; }
  void add_lane(const WorkerOptions& options);

  Communicator world_;
  Grid grid_;
  Communicator expert_data_group_;
  Engine engine_;
  std::unique_ptr<Kernels> kernels_;
  std::vector<std::unique_ptr<LaneSpace>> spaces_;
  std::string exchange_reason_;
  CombineMode combine_;
  WireFormats wire_;
  Model model_;
  ParameterStore store_;
};

}  // namespace cadre
