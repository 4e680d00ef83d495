// SPDX-License-Identifier: Apache-2.0
// Sums the gradients of a bucket over the ranks that hold the same parameters: shared parameters over all ranks that hold the
// stage, experts over those that hold the same experts, replicas of an expert over the ranks of the expert-parallel group
// that hold one, a tied embedding over the first and the last row of the pipeline. Where the optimiser's state is sharded a
// sum arrives at the parameter's owner alone, which hands the new value to the others before the next step reads it.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "comm/group/holder_sum.hpp"
#include "comm/group/reduction_queue.hpp"
#include "layers/model/expert_maps.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/train/lanes.hpp"
#include "runtime/train/optimizer_shards.hpp"

namespace cadre {

class GradientReduction {
 public:
  // Collective over the world of `groups`. The store holds the buckets of the model's stages, one after the other; all
  // arguments outlive this object.
  GradientReduction(const ProcessGroups& groups, Model& model, const ExpertMaps& maps, ParameterStore& store,
                    const OptimizerShards& shards, DType wire, Lanes& lanes);

  // Starts the sum of a bucket of a stage. Collective over its holders: all start the buckets of a stage in the same order,
  // each once a step, and finish together.
  void start(int stage, int bucket);
  // Waits for all sums that were started.
  void finish();

  // After an update: each rank has new values of what it keeps alone.
  void mark_values_changed();
  // Starts to hand them to the ranks that hold them too. Nothing where none has changed. Collective over the world.
  void start_values();
  // The same, and waits for all. Before anything but the forward passes of a step reads values.
  void complete_values();
  // Complete when the values of a bucket are; a forward pass awaits it.
  Request& values_of(int stage, int bucket);

  // The ranks that hold a stage, or, of them, those that hold the same experts.
  const Communicator& group(int stage, Placement placement) const {
    const StageGroups& groups = stages_[local_index(stage)];
    return placement == Placement::expert ? groups.expert : groups.shared;
  }
  // Adds up over all ranks that hold a stage. Collective over them; all pass as many values.
  void sum_over_stage(int stage, std::vector<int64_t>& values) const;

 private:
  struct StageGroups {
    Communicator shared;                              // the ranks that hold the stage
    Communicator expert;                              // of them, those that hold the same experts
    std::optional<ReductionQueue> shared_queue = {};  // of groups of more than one rank whose arrays are on the host
    std::optional<ReductionQueue> expert_queue = {};
  };

  static StageGroups make_groups(const ProcessGroups& groups, int stage);
  void make_queues(StageGroups& groups, DType wire) const;
  size_t local_index(int stage) const;
  std::vector<Request> start_sum(StageGroups& groups, Placement placement, int stored_bucket);
  std::vector<Request> start_values(size_t index, int bucket);
  RankSlices slices_of(Placement placement, int stored_bucket, int num_ranks) const;
  std::vector<HeldValues> replicated_grads(int stored_bucket);
  std::vector<HeldValues> embedding_grads(Stage& stage, int stored_bucket);
  void add_embedding_copy();

  JobContext& job_;
  Model& model_;
  ParameterStore& store_;
  const OptimizerShards& shards_;
  Lanes& lanes_;
  std::deque<StageGroups> stages_;               // of this rank, ascending; queues refer to groups
  std::vector<int> first_bucket_;                // of each of them in the store
  std::optional<Communicator> replica_group_;    // the expert-parallel group, where experts have replicas
  std::optional<Communicator> embedding_group_;  // the pipeline, where two of its ranks hold the embedding
  std::vector<int> embedding_rows_;              // these two
  std::deque<Request> started_;                  // a deque does not move them
  bool values_changed_ = false;
  std::vector<Request> values_;  // of each bucket
};

}  // namespace cadre
