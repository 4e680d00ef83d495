// SPDX-License-Identifier: Apache-2.0
// The optimiser over the parameters of a rank: owns its moments, updates values from gradients. AdamW, or, with
// optim.name = muon, Muon for matrices and AdamW for the rest.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/config/step_changes.hpp"

namespace cadre {

class Optimizer {
 public:
  // Moments of one trained parameter, in its shape; f32, or bf16 as train.moments says.
  struct Moments {
    Parameter* parameter;
    Tensor first;   // exp_avg in checkpoints; of Muon, in f32, momentum
    Tensor second;  // exp_avg_sq; undefined where Muon updates
    ModelPart part;

    bool are_of_muon() const { return !second.defined(); }
  };

  using Choice = std::function<bool(const Parameter&)>;

  // Of the parameters that it `keeps`, by default all. Moments start at zero. The store must outlive it.
  Optimizer(ParameterStore& store, const TrainConfig& config, const Choice& keeps = {});

  // One update of every parameter that it keeps and that is not frozen. `grad_scale` multiplies gradients first; `step`, from 1, says by
  // train.stages which parts are trained, and bias correction counts the updates of each part. Parameters that do not decay
  // (norms, biases) get no weight decay.
  void update(const Kernels& kernels, double learning_rate, double grad_scale, int64_t step);

  // Step `step`, counted from 1 and later than those before, updates nothing and is not counted.
  void skip(int64_t step) { skipped_.push_back(step); }
  const std::vector<int64_t>& skipped_steps() const { return skipped_; }
  const UpdateCounts& updates() const { return updates_; }
  // Those of a checkpoint.
  void set_history(std::vector<int64_t> skipped_steps, const UpdateCounts& updates) {
    skipped_ = std::move(skipped_steps);
    updates_ = updates;
  }

  const std::vector<Moments>& moments() const { return moments_; }
  // Keeps their memory for an operation under way.
  std::shared_ptr<const void> moment_owner() const;

  // Memory for so many bytes of moments that come from another rank. It belongs to the optimiser.
  std::byte* take_spare(size_t bytes);
  // From now on the moment of moments()[index] is what lies in spare memory of its size; the memory that it had is spare.
  void replace_first(size_t index, std::byte* spare) { replace(moments_[index].first, spare); }
  void replace_second(size_t index, std::byte* spare) { replace(moments_[index].second, spare); }

 private:
  void update(const Kernels& kernels, const Moments& moments, double learning_rate, double grad_scale);
  std::byte* scratch(Memory& memory);
  void replace(Tensor& moment, std::byte* spare);

  TrainConfig config_;
  std::vector<TrainStage> stages_;
  Memory& memory_;
  Buffer buffer_;
  std::vector<Buffer> more_;                 // beside it, for what take_spare() did not find
  std::multimap<size_t, std::byte*> spare_;  // by bytes
  Buffer scratch_;                           // of Muon
  std::vector<Moments> moments_;
  std::vector<int64_t> skipped_;
  UpdateCounts updates_ = {};
};

// Bytes of the moments that a parameter of this shape, in f32, has; none of a buffer.
size_t moment_bytes(const Parameter& parameter, const TrainConfig& config);
// Bytes that an update of the parameter takes for its duration.
size_t update_scratch_bytes(const Parameter& parameter, const TrainConfig& config);

// The updates that steps 1 to `step` made by train.stages, but for those that were skipped.
UpdateCounts count_updates(const TrainConfig& config, int64_t step, const std::vector<int64_t>& skipped_steps);

// The factor that brings a gradient of this norm down to `limit`; 1 when it is below, or when limit is 0 (off).
double clip_factor(double norm, double limit);

}  // namespace cadre
