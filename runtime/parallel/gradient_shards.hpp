// SPDX-License-Identifier: Apache-2.0
// Gradients that are dropped as soon as they are summed (ZeRO stage 2; Rajbhandari et al. 2020, arXiv 1910.02054): a backward pass
// adds to memory that lives until the sum over ranks has been taken, bucket by bucket, and the rank that keeps the moments of a
// parameter keeps its sum. Where a step has several passes, the sums of each are added in their order.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/reduction_queue.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/parallel/optimizer_shards.hpp"

namespace cadre {

class GradientShards {
 public:
  // Not `on`: no gradient is dropped. `shards` outlives this object.
  GradientShards(const OptimizerShards& shards, bool on) : shards_(shards), on_(on && shards.sharded()) {}

  bool on() const { return on_; }
  // Whether gradients of the parameter are dropped. Then the store has no memory for them.
  bool drops(const Parameter& parameter) const { return on_ && shards_.owner(parameter).has_value(); }

  // Takes the memory of the sums; a dry run only counts. Buckets are numbered as in a store with those of each stage behind those
  // of the stage before. Host memory only.
  void allocate(Model& model, bool dry_run);
  size_t shard_bytes() const { return shard_bytes_; }
  // How the backward passes of a step follow one another on a rank.
  enum class Passes {
    one,           // of one micro-batch through one stage
    in_turn,       // of several micro-batches, each through all buckets before the next
    side_by_side,  // of each bucket those of several micro-batches, one after the other
  };
  // Bytes that gradients of the passes take at most, with kSumsUnderWay sums under way.
  size_t most_pass_bytes(const Model& model, Passes passes) const;

  static constexpr size_t kSumsUnderWay = 1;

  // A step begins: the next sum of each bucket replaces that of the step before.
  void forget();
  // Gives the gradients of the bucket memory for one pass, which writes them first.
  void begin(int bucket);
  // The pass has added all. From now on gradients are the sums, where these are kept here.
  Buffer end(int bucket);
  // Memory that end() returned and nothing reads any more: a bucket of this size takes it, any other lets it go first.
  void give_back(Buffer pass);
  // Of memory that end() returned, the values of one placement: slices of ranks one behind the other, as in values_of() of a
  // store.
  std::span<float> values_of(Buffer& pass, Placement placement, int bucket) const;
  // Where this rank's slice of a sum goes; to be asked for once a sum.
  SumSink sink_of(Placement placement, int bucket);
  std::shared_ptr<const void> shard_owner() const { return shard_.share(); }

 private:
  struct Dropped {
    Parameter* parameter;
    size_t offset;  // bytes in the memory of a pass
    size_t shard;   // bytes in the shard, where it is kept here
    bool kept;
  };
  struct Part {  // of a bucket
    std::vector<Dropped> parameters;
    size_t begin = 0;  // bytes in the memory of a pass
    size_t end = 0;
    bool has_sum = false;  // of an earlier pass of the step
  };
  using Bucket = std::array<Part, 2>;  // shared, expert

  static size_t bytes_of(const Bucket& bucket) { return bucket.back().end; }
  Part& part_of(Placement placement, int bucket);
  void lay_out(Stage& stage, int number, Bucket& bucket);
  void bind_sums(const Bucket& bucket);
  Buffer take(size_t bytes);

  const OptimizerShards& shards_;
  bool on_;
  std::vector<Bucket> buckets_;
  size_t shard_bytes_ = 0;
  Buffer shard_;
  std::vector<Buffer> passes_;  // by bucket, between begin() and end()
  std::vector<Buffer> spare_;
};

}  // namespace cadre
