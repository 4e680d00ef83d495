// SPDX-License-Identifier: Apache-2.0
// A trained tensor: its value, its gradient, the name it has in a checkpoint and who owns it; and the store that gives
// parameters their memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// How a parameter starts. normal: N(0, scale) keyed by (seed, name, element), so it does not depend on placement.
struct Init {
  enum class Kind { zeros, ones, normal };
  Kind kind = Kind::zeros;
  double scale = 0.0;
};

// shared: every rank holds it, gradients are summed over the data-parallel group.
// expert: only the ranks that own the expert hold it, gradients are summed over the expert-data-parallel group and over
// the replicas of the expert.
// buffer: not trained by gradient (the selection bias), but saved.
// fixed: not trained at all, neither saved nor reduced: a weight below adapters. It has an element type of its own.
enum class Placement { shared, expert, buffer, fixed };

constexpr bool is_trained(Placement placement) {
  return placement == Placement::shared || placement == Placement::expert;
}

// A row range of a fused parameter that has a name of its own in files (gate_proj and up_proj are one [2F,H] here).
struct ParameterPart {
  std::string name;
  int64_t first_row;
  int64_t num_rows;
};

// What a back end keeps beside a weight (packed or converted copies). Rebuilt when `version` moved on.
struct PackedWeight {
  virtual ~PackedWeight() = default;
};

struct LowRank;

struct Parameter {
  std::vector<ParameterPart> parts;  // at least one; together they cover all rows
  std::vector<std::string> copies;   // names under which files hold the whole value once more; never read
  Placement placement = Placement::shared;
  Init init;
  bool is_copy = false;   // of a parameter of that name in another stage, which is saved and counted in its place
  bool decay = true;      // weight decay applies (not to norms and biases)
  bool is_table = false;  // a row for each token of the vocabulary: embedding and head
  // Of an expert's: the ranks of the expert-parallel group that hold it, ascending. Where there are several, their
  // gradients are summed too; the first saves it and counts it. None: this rank alone.
  std::vector<int> holders = {};

  // `value` has its shape from the start and its memory from a ParameterStore. `grad` stays undefined for buffers and
  // for inference.
  Tensor value;
  Tensor grad;
  Tensor scales;  // of a fixed value in fp8, f32: for each part [ceil(rows / 128), ceil(K / 128)], one behind the other
  bool frozen = false;       // a stage of training that leaves it as it is: no gradient is made, no update done
  bool grad_is_zero = true;  // the next weight gradient may overwrite instead of add

  uint64_t version = 0;  // moves on whenever `value` changes
  mutable std::unique_ptr<PackedWeight> packed;

  std::vector<LowRank> low_rank;  // what adapters add to a fixed weight, one for each part or none

  const std::string& name() const { return parts.front().name; }
};

// An addition to rows first_row .. first_row + R of a weight [N,K] that is fixed (LoRA, Hu et al. 2021, arXiv 2106.09685):
// the product of these rows with x is W x + scale b a d(x), where d is dropout while it trains.
struct LowRank {
  Parameter a;  // [rank,K]
  Parameter b;  // [R,rank]
  int64_t first_row = 0;
  double scale = 1.0;
  double dropout = 0.0;  // probability that an element of x counts as zero; the others are divided by the rest
};

using ParameterVisitor = std::function<void(Parameter&)>;

// A weight [sum of rows, width] of normal values, made of row ranges {name, rows} in this order.
Parameter make_weight(std::initializer_list<std::pair<std::string, int64_t>> parts, int64_t width, double init_std,
                      Placement placement = Placement::shared);
// A weight with a row for each token of the vocabulary.
Parameter make_table(std::string name, int64_t vocabulary, int64_t hidden, double init_std);
// A vector [size] without weight decay: the gain or offset of a norm, a bias.
Parameter make_vector(std::string name, int64_t size, Init::Kind init, Placement placement = Placement::shared);

// Where gradients of a parameter lie.
enum class GradMemory {
  own,   // of the store
  lent,  // a shape only, until the code that computes the gradient gives it memory
};

// Gives memory to the parameters of a rank: one buffer of values, one of gradients, each ordered shared, expert, one of
// buffers and one of what is fixed, so that every group that is reduced together is one span. The parameters stay where they are (in their
// modules) and must not move once added.
class ParameterStore {
 public:
  // Throws when one of its names is already there, unless it is a copy. In memory the parameters of a bucket lie in the order
  // of their slices, so that one span holds all of a slice.
  void add(Parameter& parameter, int slice = 0, GradMemory grads = GradMemory::own);

  // What is added from here on belongs to one more bucket: gradients that are reduced together. Returns its number, from
  // 0. A bucket may stay empty.
  int begin_bucket();

  // Adds every parameter of a module.
  template <class Module>
  void add_all(Module& module) {
    module.each_parameter([this](Parameter& parameter) { add(parameter); });
  }

  // In the order of adding.
  const std::vector<Parameter*>& parameters() const { return parameters_; }

  // Those of one bucket.
  std::vector<Parameter*> parameters_of(int bucket) const;

  // Lays out what was added, in `memory`. A dry run sets shapes and byte counts only. Values start undefined, gradients at
  // zero. A fixed value keeps its element type: f32, bf16, or fp8 with scales.
  // `expert_memory`: of values with Placement::expert, where that is another.
  void allocate(DType dtype, bool with_grad, bool dry_run, Memory& memory = host_memory(),
                Memory* expert_memory = nullptr);

  // Writes the initial values. They are keyed by (seed, part name, element within the part): neither fusing nor
  // placement changes them, and f32 values are the f64 ones rounded. After a dry run it does nothing; fixed values stay.
  void initialise(uint64_t seed);

  // One-dimensional views over all gradients of a group. A tensor starts at a multiple of 64
  // bytes; the elements between two tensors are zero. Without those whose memory is lent. Need with_grad.
  Tensor shared_grads() { return grads_of(Placement::shared); }
  Tensor expert_grads() { return grads_of(Placement::expert); }
  // The same of one bucket, shared or expert.
  Tensor grads_of(Placement placement, int bucket);
  // The values of these and of all others with such a placement, in the same order.
  Tensor values_of(Placement placement, int bucket);
  // Keeps the memory of gradients, or of values, for an operation under way.
  std::shared_ptr<const void> grad_owner() const { return grads_.share(); }
  std::shared_ptr<const void> value_owner(Placement placement) const {
    return placement == Placement::expert ? expert_values_.share() : values_.share();
  }

  // Begins a step: the next weight gradient of each parameter overwrites. Touches no memory.
  void forget_grads();
  // Ends a step: fills with zeros the gradients that have memory and were not written since forget_grads.
  void complete_grads();
  void complete_grads(int bucket);

  Memory& memory() const { return *memory_; }  // where what belongs to the parameters should lie too
  int64_t numel(Placement placement) const;    // elements, without what alignment adds
  size_t value_bytes() const { return group_start_[kNumChanging]; }  // without the fixed ones
  size_t fixed_bytes() const { return group_start_[kNumGroups] - group_start_[kNumChanging]; }
  size_t grad_bytes() const { return with_grad_ ? grad_group_start_.back() : 0; }

 private:
  static constexpr size_t kNumGroups = 4;         // shared, expert, buffer, fixed
  static constexpr size_t kNumChanging = 3;       // shared, expert, buffer
  static constexpr size_t kNumTrainedGroups = 2;  // shared, expert

  struct Bytes {
    size_t begin = 0;
    size_t end = 0;
  };

  void lay_out();
  std::byte* trained_value(size_t offset);
  size_t bytes_of(const Parameter& parameter) const;
  Tensor grads_of(Placement placement);
  Tensor grads_between(const Bytes& bytes);
  template <class Start>
  Bytes bytes_of(Placement placement, int bucket, Start&& start) const;

  std::vector<Parameter*> parameters_;
  std::vector<int> bucket_of_;           // each parameter
  std::vector<int> slice_of_;            // each parameter
  std::vector<GradMemory> grads_of_;     // each parameter
  std::vector<size_t> parameter_start_;  // bytes
  std::vector<size_t> grad_start_;       // bytes, of gradients with memory of the store
  int num_buckets_ = 0;
  std::unordered_set<std::string> names_;
  DType dtype_ = DType::f32;
  bool with_grad_ = false;
  Memory* memory_ = &host_memory();
  std::array<size_t, kNumGroups + 1> group_start_{};              // bytes
  std::array<size_t, kNumTrainedGroups + 1> grad_group_start_{};  // bytes
  Buffer values_;
  Buffer expert_values_;
  Buffer buffers_;  // values that the host uses too
  Buffer fixed_;
  Buffer grads_;
};

}  // namespace cadre
