// SPDX-License-Identifier: Apache-2.0
// What one rank of a job holds: its groups, its back end, its lanes, its stages of the model, and the reduction of their
// gradients. Training, evaluation and inference use it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/progress/progress_thread.hpp"
#include "runtime/parallel/gradient_reduction.hpp"
#include "runtime/parallel/gradient_shards.hpp"
#include "runtime/parallel/host_experts.hpp"
#include "runtime/parallel/optimizer_shards.hpp"

namespace cadre {

class Worker {
 public:
  // Collective over `world`. Parameters have memory and no values yet.
  Worker(Communicator world, const WorkerOptions& options);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  const ProcessGroups& groups() const { return groups_; }
  const Grid& grid() const { return groups_.grid; }
  const PipelineRoutes& routes() const { return groups_.routes; }
  const Communicator& world() const { return groups_.world; }
  const Communicator& pipeline_group() const { return groups_.pipeline; }
  // The ranks that share one set of experts with this one.
  const Communicator& expert_group() const { return lanes_.lane().expert_group(); }
  int row() const { return groups_.row(); }
  int data_rank() const { return groups_.data_rank(); }

  Model& model() { return model_; }
  const Model& model() const { return model_; }
  const ExpertMaps& expert_maps() const { return maps_; }
  // Names the experts that are here after `maps`, which has as many on each rank; see Experts::relocate. The values of those
  // that were not here are to be filled. Between steps; all ranks of the world with equal maps.
  void relocate(const ExpertMaps& maps);
  ParameterStore& store() { return store_; }
  // A step begins; see ParameterStore::forget_grads. Also of gradients that this rank makes for others.
  void forget_grads();
  const Kernels& kernels() const { return *kernels_; }
  // Whether this rank is the first of those that hold the parameter; see is_first_holder() of process_groups.hpp.
  bool is_first_holder(const Parameter& parameter) const;
  // See OptimizerShards.
  bool counts(const Parameter& parameter) const { return shards_.counts(parameter, is_first_holder(parameter)); }
  bool saves(const Parameter& parameter) const {
    return parameter.placement != Placement::fixed && shards_.saves(parameter, is_first_holder(parameter));
  }
  GradientReduction& gradients() { return gradients_; }
  const OptimizerShards& shards() const { return shards_; }
  const GradientShards& gradient_shards() const { return gradient_shards_; }

  Lanes& lanes() { return lanes_; }
  const Lanes& lanes() const { return lanes_; }
  Lane& lane(int index = 0) { return lanes_.lane(index); }
  Arena& arena(int index = 0) { return lanes_.arena(index); }
  JobContext& job() const { return world().job(); }
  Poller& poller() const { return job().poller(); }
  double deadline_seconds() const { return lanes_.deadline_seconds(); }
  LaneContext inference_context() { return lanes_.inference_context(); }
  std::string exchange_name() const { return std::string(lanes_.exchange().name()); }
  // Why exchange.progress = thread does not run a thread; else empty.
  const std::string& progress_note() const { return progress_note_; }

  void run(Task<void>& task) { lanes_.run({{&lane(), &task}}); }
  // Waits for a request of this rank outside of a task.
  void await(Request& request) const { lanes_.await(request); }
  template <class T>
  T await(Pending<T> pending) const {
    return lanes_.await(std::move(pending));
  }

 private:
  std::vector<MoeLayer*> mixtures();
  void fill_store(const WorkerOptions& options);
  void find_first_held();
  void start_progress(int num_threads);

  ProcessGroups groups_;
  std::unique_ptr<Kernels> kernels_;
  ExpertMaps maps_;
  Model model_;
  std::unique_ptr<HostExperts> host_experts_;  // with exchange.balance = host; has memory of the store
  ParameterStore store_;
  Lanes lanes_;
  OptimizerShards shards_;
  GradientShards gradient_shards_;
  GradientReduction gradients_;
  std::vector<const Parameter*> first_held_;  // sorted
  bool with_grad_;
  std::string progress_note_;
  std::unique_ptr<ProgressThread> progress_thread_;  // last: it drives the transport of the world
};

}  // namespace cadre
