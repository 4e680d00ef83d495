// SPDX-License-Identifier: Apache-2.0
#include "runtime/optim/optimizer.hpp"

#include <algorithm>

#include "runtime/optim/muon.hpp"

namespace cadre {
namespace {

bool uses_muon(const Parameter& parameter, const TrainConfig& config) {
  return config.optim.name == "muon" && is_muon_matrix(parameter);
}

}  // namespace

Optimizer::Optimizer(ParameterStore& store, const TrainConfig& config, const Choice& keeps)
    : config_(config), stages_(train_stages(config)), memory_(store.memory()) {
  const bool halved = config.moments == "bf16";
  size_t bytes = 0;
  for (Parameter* parameter : store.parameters()) {
    if (!is_trained(parameter->placement) || (keeps && !keeps(*parameter))) continue;
    const bool by_muon = uses_muon(*parameter, config);
    const DType dtype = halved && !by_muon ? DType::bf16 : parameter->value.dtype();
    const Tensor shape = parameter->value.with_memory(nullptr, dtype);
    moments_.push_back({parameter, shape, by_muon ? Tensor() : shape, part_of_parameter(parameter->name())});
    bytes += (by_muon ? 1 : 2) * whole_cache_lines(shape.bytes());
  }
  buffer_ = Buffer(bytes, store.memory());
  store.memory().fill(buffer_.data(), std::byte{0}, bytes);
  std::byte* next = buffer_.data();
  for (Moments& moments : moments_) {
    for (Tensor* moment : {&moments.first, &moments.second}) {
      if (moment == &moments.second && moments.are_of_muon()) continue;
      *moment = moment->with_memory(next, moment->dtype());
      next += whole_cache_lines(moment->bytes());
    }
  }
}

size_t moment_bytes(const Parameter& parameter, const TrainConfig& config) {
  if (!is_trained(parameter.placement)) return 0;
  if (uses_muon(parameter, config)) return parameter.value.bytes();
  return (config.moments == "bf16" ? 1 : 2) * parameter.value.bytes();
}

size_t update_scratch_bytes(const Parameter& parameter, const TrainConfig& config) {
  return uses_muon(parameter, config) ? muon_scratch_bytes(parameter) : 0;
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

void Optimizer::update(const Kernels& kernels, double learning_rate, double grad_scale, int64_t step) {
  const Trained trained = trained_at(stages_, step - 1);
  for (size_t part = 0; part < updates_.size(); ++part) {
    if (trains(trained, static_cast<ModelPart>(part))) ++updates_[part];
  }
  for (const Moments& moments : moments_) {
    if (moments.parameter->frozen) continue;
    update(kernels, moments, learning_rate, grad_scale);
    ++moments.parameter->version;
  }
}

void Optimizer::update(const Kernels& kernels, const Moments& moments, double learning_rate, double grad_scale) {
  Parameter& parameter = *moments.parameter;
  const double weight_decay = parameter.decay ? config_.weight_decay : 0.0;
  if (moments.are_of_muon()) {
    const MuonStep step = {.learning_rate = learning_rate,
                           .momentum = config_.optim.momentum,
                           .weight_decay = weight_decay,
                           .grad_scale = grad_scale};
    return muon_update(kernels.fp32(), step, parameter, moments.first, scratch(kernels.memory()));
  }
  const AdamWStep settings = {.learning_rate = learning_rate,
                              .beta1 = config_.beta1,
                              .beta2 = config_.beta2,
                              .epsilon = config_.epsilon,
                              .weight_decay = weight_decay,
                              .grad_scale = grad_scale,
                              .step = updates_[static_cast<size_t>(moments.part)]};
  kernels.adamw(settings, parameter.value, parameter.grad, moments.first, moments.second);
}

std::shared_ptr<const void> Optimizer::moment_owner() const {
  auto all = std::make_shared<std::vector<std::shared_ptr<const void>>>();
  all->push_back(buffer_.share());
  for (const Buffer& buffer : more_) all->push_back(buffer.share());
  return all;
}

std::byte* Optimizer::take_spare(size_t bytes) {
  const auto found = spare_.find(bytes);
  if (found == spare_.end()) return more_.emplace_back(bytes, memory_).data();
  std::byte* const spare = found->second;
  spare_.erase(found);
  return spare;
}

void Optimizer::replace(Tensor& moment, std::byte* spare) {
  spare_.emplace(moment.bytes(), moment.raw());
  moment = moment.with_memory(spare, moment.dtype());
}

// Made by the first update, which a model that is only read never has.
std::byte* Optimizer::scratch(Memory& memory) {
  if (scratch_.empty()) {
    size_t bytes = 0;
    for (const Moments& moments : moments_) {
      bytes = std::max(bytes, update_scratch_bytes(*moments.parameter, config_));
    }
    scratch_ = Buffer(bytes, memory);
  }
  return scratch_.data();
}

double clip_factor(double norm, double limit) { return limit > 0.0 && norm > limit ? limit / norm : 1.0; }

}  // namespace cadre
