// SPDX-License-Identifier: Apache-2.0
// Gives memory to the parameters of a rank: one buffer of values, one of gradients, each ordered shared, expert,
// buffer, so that every group that is reduced together is one span. The parameters stay where they are (in their
// modules) and must not move once added.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

class ParameterStore {
 public:
  // Throws when one of its names is already there, unless it is a copy.
  void add(Parameter& parameter);

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
  // zero.
  void allocate(DType dtype, bool with_grad, bool dry_run, Memory& memory = host_memory());

  // Writes the initial values. They are keyed by (seed, part name, element within the part): neither fusing nor
  // placement changes them, and f32 values are the f64 ones rounded. After a dry run it does nothing.
  void initialise(uint64_t seed);

  // One-dimensional views over all gradients of a group, in the order of adding. A tensor starts at a multiple of 64
  // bytes; the elements between two tensors are zero. Need with_grad.
  Tensor shared_grads() { return grads_of(Placement::shared); }
  Tensor expert_grads() { return grads_of(Placement::expert); }
  // The same of one bucket, shared or expert.
  Tensor grads_of(Placement placement, int bucket);
  // Keeps the memory of gradients, for an operation under way.
  std::shared_ptr<const void> grad_owner() const { return grads_.share(); }

  // Begins a step: the next weight gradient of each parameter overwrites. Touches no memory.
  void forget_grads();
  // Ends a step: fills with zeros the gradients that nobody wrote since forget_grads.
  void complete_grads();
  void complete_grads(int bucket);

  Memory& memory() const { return *memory_; }  // where what belongs to the parameters should lie too
  int64_t numel(Placement placement) const;    // elements, without what alignment adds
  size_t value_bytes() const { return group_start_[kNumGroups]; }
  size_t grad_bytes() const { return with_grad_ ? group_start_[kNumTrainedGroups] : 0; }

 private:
  static constexpr size_t kNumGroups = 3;         // shared, expert, buffer
  static constexpr size_t kNumTrainedGroups = 2;  // shared, expert

  std::vector<size_t> lay_out();
  Tensor grads_of(Placement placement);
  Tensor grads_between(size_t start, size_t end);

  std::vector<Parameter*> parameters_;
  std::vector<int> bucket_of_;           // each parameter
  std::vector<size_t> parameter_start_;  // bytes
  int num_buckets_ = 0;
  std::unordered_set<std::string> names_;
  DType dtype_ = DType::f32;
  bool with_grad_ = false;
  Memory* memory_ = &host_memory();
  std::array<size_t, kNumGroups + 1> group_start_{};  // bytes
  Buffer values_;
  Buffer grads_;
};

}  // namespace cadre
