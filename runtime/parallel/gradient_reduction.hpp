// SPDX-License-Identifier: Apache-2.0
// Sums the gradients of a bucket over the ranks that hold the same parameters: shared parameters over all ranks that hold the
// stage, experts over those that hold the same experts, replicas of an expert over the ranks of the expert-parallel group
// that hold one, parts that guests computed at the owner (exchange.balance = host), a tied embedding over the first and the last row of the pipeline. Where the optimiser's state is sharded a
// sum arrives at the parameter's owner alone, which hands the new value to the others before the next step reads it.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "comm/group/holder_sum.hpp"
#include "comm/group/owner_sum.hpp"
#include "comm/group/reduction_queue.hpp"
#include "layers/model/model.hpp"
#include "layers/model/stage_place.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/parallel/gradient_shards.hpp"
#include "runtime/parallel/lanes.hpp"
#include "runtime/parallel/optimizer_shards.hpp"

namespace cadre {

class GradientReduction {
 public:
  // Collective over the world of `groups`. The store holds the buckets of the model's stages, one after the other; all
  // arguments outlive this object.
  GradientReduction(const ProcessGroups& groups, Model& model, const ExpertMaps& maps, ParameterStore& store,
                    const OptimizerShards& shards, GradientShards& gradient_shards, DType wire, bool balances,
                    Lanes& lanes);
  // After an error the poller still watches what is under way.
  ~GradientReduction();
  GradientReduction(const GradientReduction&) = delete;
  GradientReduction& operator=(const GradientReduction&) = delete;

  // Before a pass adds to the gradients of a bucket of a stage. Waits until there is room for another sum under way.
  void begin(int stage, int bucket);
  // Starts the sum of a bucket of a stage. Collective over its holders: all start the buckets of a stage in the same order,
  // each once a step, and finish together. Where gradients are dropped, once a pass, also before the last one.
  enum class Pass { one_of_more, last };
  void start(int stage, int bucket, Pass pass = Pass::last);
  bool sums_each_pass() const { return gradient_shards_.on(); }
  // In place of start(): gives up what a pass added, where gradients are dropped.
  void drop(int stage, int bucket);
  // Whether gradients of experts of a stage are summed over ranks. If not, start() does not read them.
  bool sums_experts(int stage) const;
  // Waits for all sums that were started.
  void finish();
  // From the next step on somebody waits for gradients of experts while the step runs: they are computed as if all were summed.
  void complete_experts_early(bool early) { experts_early_ = early; }
  // Whether the gradients of the experts of a bucket are complete in this step, on the rank that keeps their moments. Needs
  // complete_experts_early().
  bool has_expert_sums(int stage, int bucket) const;
  // A step begins.
  void begin_step();

  // To be called after an update: each rank has new values of the parameters that it keeps alone.
  void mark_values_changed();
  // Starts to gather new values from the ranks that keep them. Does nothing where none has changed. Collective over the world.
  void start_values();
  // The same, and waits for all. Needed before values are read by anything but the forward passes of a step.
  void complete_values();
  // Complete when the values of a bucket are; a forward pass awaits it.
  Request& values_of(int stage, int bucket);
  // Whether the values of all buckets are.
  bool has_values() const;

  // Adds up over all ranks that hold a stage. Collective over them; all pass as many values.
  void sum_over_stage(int stage, std::vector<int64_t>& values) const;

 private:
  struct Group {
    Communicator ranks;
    std::optional<ReductionQueue> queue = {};  // where there are several ranks and arrays are on the host
  };
  struct StageGroups {
    Group shared;  // the ranks that hold the stage
    Group expert;  // of them, those that hold the same experts

    Group& of(Placement placement) { return placement == Placement::expert ? expert : shared; }
  };
  // Sums of dropped gradients under way: the memory that they read, and where they are among the started ones.
  struct Dropping {
    Buffer memory;
    size_t first;
    size_t last;
  };

  static StageGroups make_groups(const ProcessGroups& groups, int stage);
  void make_queue(Group& group, DType wire) const;
  size_t local_index(int stage) const;
  std::vector<Request> start_guests(size_t index, int bucket);
  void wait_for_room();
  void let_go_of_dropped();
  std::vector<Request> start_dropped_sum(Group& group, Placement placement, int stored_bucket, Buffer& added);
  void keep(std::vector<Request> sums, int stored_bucket, Placement placement);
  void finish_started();
  std::vector<Request> start_sum(Group& group, Placement placement, int stored_bucket);
  std::vector<Request> start_values(size_t index, int bucket);
  std::vector<Request> start_gather(Group& group, Placement placement, int stored_bucket);
  RankSlices slices_of(Placement placement, int stored_bucket, int num_ranks) const;
  std::vector<HeldValues> replicated_grads(int stored_bucket);
  std::vector<HeldValues> embedding_grads(Stage& stage, int stored_bucket);
  void add_embedding_copy();

  JobContext& job_;
  Model& model_;
  ParameterStore& store_;
  const OptimizerShards& shards_;
  GradientShards& gradient_shards_;
  Lanes& lanes_;
  std::deque<StageGroups> stages_;               // of this rank, ascending; queues refer to groups
  std::vector<int> first_bucket_;                // of each of them in the store
  std::optional<Communicator> replica_group_;    // the expert-parallel group, where experts have replicas
  std::optional<Communicator> guest_group_;      // the same, where ranks compute rows of each other's experts
  std::vector<std::pair<size_t, int>> waiting_;  // stages and buckets of which experts are summed when guests are
  std::optional<Communicator> embedding_group_;  // the pipeline, where two of its ranks hold the embedding
  std::vector<int> embedding_rows_;              // these two
  struct Started {
    Request request;
    int bucket;  // in the store
    Placement placement;
  };
  std::deque<Started> started_;    // a deque does not move them
  std::deque<Dropping> dropping_;  // oldest first
  std::vector<bool> begun_;        // by bucket in the store: start() was called in this step
  bool experts_early_ = false;
  bool values_changed_ = false;
  std::vector<Request> values_;  // of each bucket
};

}  // namespace cadre
