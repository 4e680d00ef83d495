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
  const Communicator& expert_group() const { return lane_.expert_group(); }
  // The ranks that hold the same experts as this one: gradients of experts are summed over them.
  const Communicator& expert_data_group() const { return expert_data_group_; }

  Model& model() { return model_; }
  ParameterStore& store() { return store_; }
  const Kernels& kernels() const { return *kernels_; }
  Arena& arena() { return arena_; }  // activations of the micro-batch under way
  Lane& lane() { return lane_; }
  double deadline_seconds() const { return engine_.deadline_seconds(); }

  // The context of a micro-batch that is trained on, its losses scaled by `token_scale`, and of one that is not.
  LaneContext training_context(double token_scale);
  LaneContext inference_context();
  Exchange& exchange() { return *choice_.exchange; }
  const std::string& exchange_reason() const { return choice_.reason; }  // why this strategy
  // Runs a task on the lane to its end.
  void run(Task<void>& task) { engine_.run(lane_, task); }
  // Waits for a request of this rank outside of a task.
  void await(Request& request) const { wait(request, engine_.deadline_seconds(), lane_.position); }

 private:
  Communicator world_;
  Grid grid_;
  Lane lane_;
  Communicator expert_data_group_;
  Engine engine_;
  std::unique_ptr<Kernels> kernels_;
  Choice choice_;
  CombineMode combine_;
  WireFormats wire_;
  Model model_;
  ParameterStore store_;
  Arena arena_;
};

}  // namespace cadre
