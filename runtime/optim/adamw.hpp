// SPDX-License-Identifier: Apache-2.0
// AdamW over the parameters of a rank: owns the two moments, updates values from gradients.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/tensor/parameter_store.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/config/train_stages.hpp"

namespace cadre {

class AdamW {
 public:
  // Moments of one trained parameter, in its shape; f32, or bf16 as train.moments says.
  struct Moments {
    Parameter* parameter;
    Tensor first;   // exp_avg in checkpoints
    Tensor second;  // exp_avg_sq
    ModelPart part;
  };

  // Moments start at zero. The store must outlive it.
  AdamW(ParameterStore& store, const TrainConfig& config);

  // One update of every parameter that is not frozen. `grad_scale` multiplies gradients first; `step` counts from 1, and
  // what was frozen or skipped in some steps before counts only the others. Parameters that do not decay (norms, biases) get no weight
  // decay.
  void update(const Kernels& kernels, double learning_rate, double grad_scale, int64_t step);

  // Step `step`, counted from 1 and later than those before, updates nothing and is not counted.
  void skip(int64_t step) { skipped_.push_back(step); }
  const std::vector<int64_t>& skipped_steps() const { return skipped_; }
  // Those of a checkpoint.
  void set_skipped_steps(std::vector<int64_t> steps) { skipped_ = std::move(steps); }

  const std::vector<Moments>& moments() const { return moments_; }

 private:
  int64_t updates_at(ModelPart part, int64_t step) const;

  TrainConfig config_;
  std::vector<TrainStage> stages_;
  Buffer buffer_;
  std::vector<Moments> moments_;
  std::vector<int64_t> skipped_;
};

// The factor that brings a gradient of this norm down to `limit`; 1 when it is below, or when limit is 0 (off).
double clip_factor(double norm, double limit);

}  // namespace cadre
