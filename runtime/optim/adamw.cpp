// SPDX-License-Identifier: Apache-2.0
#include "runtime/optim/adamw.hpp"

#include <algorithm>

namespace cadre {

AdamW::AdamW(ParameterStore& store, const TrainConfig& config, const Choice& keeps)
    : config_(config), stages_(train_stages(config)) {
  const bool halved = config.moments == "bf16";
  size_t bytes = 0;
  for (Parameter* parameter : store.parameters()) {
    if (!is_trained(parameter->placement) || (keeps && !keeps(*parameter))) continue;
    const Tensor shape = parameter->value.with_memory(nullptr, halved ? DType::bf16 : parameter->value.dtype());
    moments_.push_back({parameter, shape, shape, part_of_parameter(parameter->name())});
    bytes += 2 * whole_cache_lines(shape.bytes());
  }
  buffer_ = Buffer(bytes, store.memory());
  store.memory().fill(buffer_.data(), std::byte{0}, bytes);
  std::byte* next = buffer_.data();
  for (Moments& moments : moments_) {
    for (Tensor* moment : {&moments.first, &moments.second}) {
      *moment = moment->with_memory(next, moment->dtype());
      next += whole_cache_lines(moment->bytes());
    }
  }
}

UpdateCounts count_updates(const TrainConfig& config, int64_t step, const std::vector<int64_t>& skipped_steps) {
  const std::vector<TrainStage> stages = train_stages(config);
  UpdateCounts updates = {};
  for (size_t part = 0; part < updates.size(); ++part) {
    const auto skipped = std::ranges::count_if(skipped_steps, [&](int64_t before) {
      return trains(trained_at(stages, before - 1), static_cast<ModelPart>(part));
    });
    updates[part] = updates_of(stages, static_cast<ModelPart>(part), step - 1) - skipped;
  }
  return updates;
}

void AdamW::update(const Kernels& kernels, double learning_rate, double grad_scale, int64_t step) {
  const Trained trained = trained_at(stages_, step - 1);
  for (size_t part = 0; part < updates_.size(); ++part) {
    if (trains(trained, static_cast<ModelPart>(part))) ++updates_[part];
  }
  for (const Moments& moments : moments_) {
    Parameter& parameter = *moments.parameter;
    if (parameter.frozen) continue;
    const AdamWStep settings = {.learning_rate = learning_rate,
                                .beta1 = config_.beta1,
                                .beta2 = config_.beta2,
                                .epsilon = config_.epsilon,
                                .weight_decay = parameter.decay ? config_.weight_decay : 0.0,
                                .grad_scale = grad_scale,
                                .step = updates_[static_cast<size_t>(moments.part)]};
    kernels.adamw(settings, parameter.value, parameter.grad, moments.first, moments.second);
    ++parameter.version;
  }
}

double clip_factor(double norm, double limit) { return limit > 0.0 && norm > limit ? limit / norm : 1.0; }

}  // namespace cadre
