// SPDX-License-Identifier: Apache-2.0
#include "layers/tensor/parameter.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "layers/tensor/normal_values.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

Parameter make_weight(std::initializer_list<std::pair<std::string, int64_t>> parts, int64_t width, double init_std,
                      Placement placement) {
  Parameter weight;
  int64_t num_rows = 0;
  for (const auto& [name, rows] : parts) {
    weight.parts.push_back({name, num_rows, rows});
    num_rows += rows;
  }
  weight.placement = placement;
  weight.init = {Init::Kind::normal, init_std};
  weight.value = Tensor(nullptr, DType::f32, {num_rows, width});
  return weight;
}

Parameter make_table(std::string name, int64_t vocabulary, int64_t hidden, double init_std) {
  Parameter table = make_weight({{std::move(name), vocabulary}}, hidden, init_std);
  table.is_table = true;
  return table;
}

Parameter make_vector(std::string name, int64_t size, Init::Kind init, Placement placement) {
  Parameter vector;
  vector.parts.push_back({std::move(name), 0, size});
  vector.placement = placement;
  vector.init = {init, 0.0};
  vector.decay = false;
  vector.value = Tensor(nullptr, DType::f32, {size});
  return vector;
}

namespace {

size_t group_of(Placement placement) { return static_cast<size_t>(placement); }

template <class T>
void initialise_part(const Init& init, const ParameterPart& part, const Tensor& rows, uint64_t seed) {
  const Random random(seed, "init", hash_name(part.name));
  T* values = rows.data<T>();
  if constexpr (std::is_same_v<T, float>) {
    if (init.kind == Init::Kind::normal)
      return fill_normal(random, init.scale, {values, static_cast<size_t>(rows.numel())});
  }
  for (int64_t i = 0; i < rows.numel(); ++i) {
    switch (init.kind) {
      case Init::Kind::zeros: values[i] = T{0}; break;
      case Init::Kind::ones: values[i] = T{1}; break;
      case Init::Kind::normal: values[i] = static_cast<T>(init.scale * random.normal(static_cast<uint64_t>(i))); break;
    }
  }
}

}  // namespace

void ParameterStore::add(Parameter& parameter, int slice, GradMemory grads) {
  for (const ParameterPart& part : parameter.parts) {
    CADRE_CHECK(parameter.is_copy || names_.insert(part.name).second,
                fmt::format("two parameters are named {}", part.name), "every module needs a prefix of its own");
  }
  if (num_buckets_ == 0) begin_bucket();
  parameters_.push_back(&parameter);
  bucket_of_.push_back(num_buckets_ - 1);
  slice_of_.push_back(slice);
  grads_of_.push_back(grads);
}

int ParameterStore::begin_bucket() { return num_buckets_++; }

std::vector<Parameter*> ParameterStore::parameters_of(int bucket) const {
  std::vector<Parameter*> parameters;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (bucket_of_[i] == bucket) parameters.push_back(parameters_[i]);
  }
  return parameters;
}

namespace {

// The scales lie behind the value.
void place_fixed(Parameter& parameter, std::byte* memory) {
  const auto at = [memory](size_t offset) { return memory == nullptr ? nullptr : memory + offset; };
  const size_t value_bytes = whole_cache_lines(parameter.value.bytes());
  parameter.value = parameter.value.with_memory(memory, parameter.value.dtype());
  if (parameter.scales.defined()) parameter.scales = parameter.scales.with_memory(at(value_bytes), DType::f32);
  parameter.grad = Tensor();
  parameter.frozen = true;
  ++parameter.version;
}

}  // namespace

void ParameterStore::allocate(DType dtype, bool with_grad, bool dry_run, Memory& memory, Memory* expert_memory) {
  CADRE_CHECK(dtype == DType::f32 || dtype == DType::f64,
              fmt::format("parameters cannot be stored as {}", name_of(dtype)), "use f32, or f64 for tests");
  dtype_ = dtype;
  with_grad_ = with_grad;
  memory_ = &memory;
  lay_out();
  const std::vector<size_t>& offsets = parameter_start_;
  const size_t buffers_start = group_start_[kNumTrainedGroups];
  const size_t fixed_start = group_start_[kNumChanging];
  const size_t experts_start = group_start_[group_of(Placement::expert)];
  values_ = Buffer(dry_run ? 0 : experts_start, memory);
  expert_values_ = Buffer(dry_run ? 0 : buffers_start - experts_start, expert_memory ? *expert_memory : memory);
  buffers_ = Buffer(dry_run ? 0 : fixed_start - buffers_start, memory.for_results());
  fixed_ = Buffer(dry_run ? 0 : fixed_bytes(), memory);
  grads_ = Buffer(dry_run ? 0 : grad_bytes(), memory);
  memory.fill(grads_.data(), std::byte{0}, grads_.bytes());

  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& parameter = *parameters_[i];
    if (parameter.placement == Placement::fixed) {
      std::byte* memory_of = dry_run ? nullptr : fixed_.data() + (offsets[i] - fixed_start);
      place_fixed(parameter, memory_of);
      continue;
    }
    const bool trained = is_trained(parameter.placement);
    const auto value = [&] {
      return trained ? trained_value(offsets[i]) : buffers_.data() + (offsets[i] - buffers_start);
    };
    parameter.value = parameter.value.with_memory(dry_run ? nullptr : value(), dtype);
    parameter.grad = Tensor();
    if (with_grad && trained) {
      const bool lent = dry_run || grads_of_[i] == GradMemory::lent;
      parameter.grad = parameter.value.with_memory(lent ? nullptr : grads_.data() + grad_start_[i], dtype);
    }
    parameter.grad_is_zero = true;
    ++parameter.version;
  }
}

std::byte* ParameterStore::trained_value(size_t offset) {
  const size_t experts_start = group_start_[group_of(Placement::expert)];
  return offset < experts_start ? values_.data() + offset : expert_values_.data() + (offset - experts_start);
}

// Sets where each group and each parameter starts, in bytes.
void ParameterStore::lay_out() {
  std::vector<size_t> order(parameters_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [this](size_t i) { return std::pair(bucket_of_[i], slice_of_[i]); });
  parameter_start_.assign(parameters_.size(), 0);
  grad_start_.assign(parameters_.size(), 0);
  size_t offset = 0;
  size_t grad_offset = 0;
  for (size_t group = 0; group < kNumGroups; ++group) {
    group_start_[group] = offset;
    if (group < kNumTrainedGroups) grad_group_start_[group] = grad_offset;
    for (const size_t i : order) {
      if (group_of(parameters_[i]->placement) != group) continue;
      const size_t bytes = bytes_of(*parameters_[i]);
      parameter_start_[i] = std::exchange(offset, offset + bytes);
      if (group >= kNumTrainedGroups || grads_of_[i] == GradMemory::lent) continue;
      grad_start_[i] = std::exchange(grad_offset, grad_offset + bytes);
    }
  }
  group_start_[kNumGroups] = offset;
  grad_group_start_[kNumTrainedGroups] = grad_offset;
}

// With what alignment adds.
size_t ParameterStore::bytes_of(const Parameter& parameter) const {
  if (parameter.placement != Placement::fixed) {
    return whole_cache_lines(static_cast<size_t>(parameter.value.numel()) * size_of(dtype_));
  }
  return whole_cache_lines(parameter.value.bytes()) + whole_cache_lines(parameter.scales.bytes());
}

void ParameterStore::initialise(uint64_t seed) {
  if (values_.empty() && expert_values_.empty() && buffers_.empty()) return;
  for (Parameter* parameter : parameters_) {
    if (parameter->placement == Placement::fixed) continue;
    for (const ParameterPart& part : parameter->parts) {
      OnHost rows(parameter->value.rows(part.first_row, part.num_rows), *memory_);
      if (dtype_ == DType::f64) {
        initialise_part<double>(parameter->init, part, *rows, seed);
      } else {
        initialise_part<float>(parameter->init, part, *rows, seed);
      }
      rows.put_back();
    }
    ++parameter->version;
  }
}

Tensor ParameterStore::grads_of(Placement placement) {
  return grads_between({grad_group_start_[group_of(placement)], grad_group_start_[group_of(placement) + 1]});
}

Tensor ParameterStore::grads_of(Placement placement, int bucket) {
  return grads_between(bytes_of(placement, bucket, [this](size_t i) {
    return grads_of_[i] == GradMemory::own ? std::optional(grad_start_[i]) : std::nullopt;
  }));
}

Tensor ParameterStore::values_of(Placement placement, int bucket) {
  const Bytes bytes = bytes_of(placement, bucket, [this](size_t i) { return std::optional(parameter_start_[i]); });
  const Buffer& buffer = placement == Placement::expert ? expert_values_ : values_;
  std::byte* data = buffer.empty() ? nullptr : trained_value(bytes.begin);
  return Tensor(data, dtype_, {static_cast<int64_t>((bytes.end - bytes.begin) / size_of(dtype_))});
}

// Parameters of one bucket and group lie one behind the other.
template <class Start>
ParameterStore::Bytes ParameterStore::bytes_of(Placement placement, int bucket, Start&& start) const {
  std::optional<Bytes> all;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (bucket_of_[i] != bucket || parameters_[i]->placement != placement) continue;
    const std::optional<size_t> begin = start(i);
    if (!begin) continue;
    const Bytes one = {*begin, *begin + whole_cache_lines(parameters_[i]->value.bytes())};
    all = all ? Bytes{std::min(all->begin, one.begin), std::max(all->end, one.end)} : one;
  }
  return all.value_or(Bytes());
}

Tensor ParameterStore::grads_between(const Bytes& bytes) {
  CADRE_CHECK(with_grad_, "this store holds no gradients", "allocate it with gradients");
  std::byte* data = grads_.empty() ? nullptr : grads_.data() + bytes.begin;
  return Tensor(data, dtype_, {static_cast<int64_t>((bytes.end - bytes.begin) / size_of(dtype_))});
}

void ParameterStore::forget_grads() {
  for (Parameter* parameter : parameters_) parameter->grad_is_zero = true;
}

void ParameterStore::complete_grads() {
  for (int bucket = 0; bucket < num_buckets_; ++bucket) complete_grads(bucket);
}

void ParameterStore::complete_grads(int bucket) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& parameter = *parameters_[i];
    if (bucket_of_[i] != bucket || !parameter.grad.defined() || !parameter.grad_is_zero) continue;
    if (parameter.grad.raw() == nullptr) continue;
    memory_->fill(parameter.grad.raw(), std::byte{0}, parameter.grad.bytes());
  }
}

int64_t ParameterStore::numel(Placement placement) const {
  int64_t count = 0;
  for (const Parameter* parameter : parameters_) {
    if (parameter->placement == placement) count += parameter->value.numel();
  }
  return count;
}

}  // namespace cadre
