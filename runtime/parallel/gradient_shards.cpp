// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/gradient_shards.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

void GradientShards::allocate(Model& model, bool dry_run) {
  if (!on_) return;
  for (const auto& stage : model.stages()) {
    for (int number = 0; number < stage->num_buckets(); ++number) lay_out(*stage, number, buckets_.emplace_back());
  }
  passes_.resize(buckets_.size());
  if (dry_run) return;
  shard_ = Buffer(shard_bytes_);
  for (const Bucket& bucket : buckets_) bind_sums(bucket);
}

// In the order of the store.
void GradientShards::lay_out(Stage& stage, int number, Bucket& bucket) {
  size_t offset = 0;
  for (const Placement placement : {Placement::shared, Placement::expert}) {
    Part& part = bucket[static_cast<size_t>(placement)];
    stage.each_parameter(number, [&](Parameter& parameter) {
      if (parameter.placement != placement || !drops(parameter)) return;
      part.parameters.push_back({&parameter, 0, 0, shards_.keeps(parameter)});
    });
    std::ranges::stable_sort(part.parameters, {}, [&](const Dropped& one) { return *shards_.owner(*one.parameter); });
    part.begin = offset;
    for (Dropped& one : part.parameters) {
      const size_t bytes = whole_cache_lines(static_cast<size_t>(one.parameter->value.numel()) * sizeof(float));
      one.offset = std::exchange(offset, offset + bytes);
      if (one.kept) one.shard = std::exchange(shard_bytes_, shard_bytes_ + bytes);
    }
    part.end = offset;
  }
}

// A pass goes through the buckets of a stage from the last to the first. Beside the one that is written there are those of which sums
// are under way, and an embedding that the end of the stage wrote too.
size_t GradientShards::most_pass_bytes(const Model& model, Passes passes) const {
  if (!on_) return 0;
  size_t last_of_pass = 0;
  size_t most = 0;
  for (int round = 0; round < 2; ++round) {
    size_t first = 0;
    for (const auto& stage : model.stages()) {
      const size_t embedding = stage->embeds_at_both_ends() ? bytes_of(buckets_[first]) : 0;
      size_t before = passes == Passes::one ? 0 : last_of_pass;
      for (auto i = static_cast<size_t>(stage->num_buckets()); i-- > 0;) {
        const size_t own = bytes_of(buckets_[first + i]);
        if (own == 0) continue;
        const size_t under_way = passes == Passes::side_by_side ? std::max(own, before) : before;
        most = std::max(most, own + (i > 0 ? embedding : 0) + kSumsUnderWay * under_way);
        before = own;
      }
      last_of_pass = std::max(last_of_pass, before);
      first += static_cast<size_t>(stage->num_buckets());
    }
  }
  return most;
}

void GradientShards::forget() {
  for (Bucket& bucket : buckets_) {
    for (Part& part : bucket) part.has_sum = false;
  }
}

void GradientShards::begin(int bucket) {
  const Bucket& parts = buckets_[static_cast<size_t>(bucket)];
  Buffer& pass = passes_[static_cast<size_t>(bucket)];
  CADRE_ASSERT(pass.empty());
  if (bytes_of(parts) == 0) return;
  pass = take(bytes_of(parts));
  for (const Part& part : parts) {
    for (const Dropped& one : part.parameters) {
      one.parameter->grad = one.parameter->value.with_memory(pass.data() + one.offset, DType::f32);
      one.parameter->grad_is_zero = true;
    }
  }
}

// Layers are alike, so that most passes touch no fresh pages.
Buffer GradientShards::take(size_t bytes) {
  const auto fitting = std::ranges::find(spare_, bytes, &Buffer::bytes);
  if (fitting == spare_.end()) {
    spare_.clear();
    return Buffer(bytes);
  }
  Buffer taken = std::move(*fitting);
  spare_.erase(fitting);
  return taken;
}

void GradientShards::give_back(Buffer pass) {
  if (!pass.empty()) spare_.push_back(std::move(pass));
}

Buffer GradientShards::end(int bucket) {
  bind_sums(buckets_[static_cast<size_t>(bucket)]);
  return std::move(passes_[static_cast<size_t>(bucket)]);
}

void GradientShards::bind_sums(const Bucket& bucket) {
  for (const Part& part : bucket) {
    for (const Dropped& one : part.parameters) {
      std::byte* const sum = one.kept ? shard_.data() + one.shard : nullptr;
      one.parameter->grad = one.parameter->value.with_memory(sum, DType::f32);
    }
  }
}

GradientShards::Part& GradientShards::part_of(Placement placement, int bucket) {
  return buckets_[static_cast<size_t>(bucket)][static_cast<size_t>(placement)];
}

std::span<float> GradientShards::values_of(Buffer& pass, Placement placement, int bucket) const {
  const Part& part = buckets_[static_cast<size_t>(bucket)][static_cast<size_t>(placement)];
  return {reinterpret_cast<float*>(pass.data() + part.begin), (part.end - part.begin) / sizeof(float)};
}

SumSink GradientShards::sink_of(Placement placement, int bucket) {
  Part& part = part_of(placement, bucket);
  SumSink sink = {.to = {}, .first = 0, .adds = std::exchange(part.has_sum, true), .owner = shard_.share()};
  for (const Dropped& one : part.parameters) {
    if (!one.kept) continue;
    auto* const begin = reinterpret_cast<float*>(shard_.data() + one.shard);
    auto* const end = begin + one.parameter->value.numel();
    if (sink.to.empty()) sink.first = static_cast<int64_t>((one.offset - part.begin) / sizeof(float));
    sink.to = {sink.to.empty() ? begin : sink.to.data(), end};
  }
  return sink;
}

}  // namespace cadre
