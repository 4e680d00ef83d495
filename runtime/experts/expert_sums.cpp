// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/expert_sums.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"

namespace cadre {
namespace {

constexpr std::string_view kLayerPrefix = "model.layers.";
constexpr std::string_view kExperts = "experts.";
constexpr std::string_view kGate = "gate.";

// The number that the text begins with, which is taken off.
std::optional<int> take_number(std::string_view& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

// A name taken apart: model.layers.<layer><mixture>experts.<expert><rest>, or of a router; mixture is ".mlp.", say.
struct TensorName {
  int layer = -1;
  int expert = -1;
  bool of_router = false;
  std::string mixture;
  std::string rest;

  explicit TensorName(std::string_view name) {
    if (!name.starts_with(kLayerPrefix)) return;
    name.remove_prefix(kLayerPrefix.size());
    const auto number = take_number(name);
    if (!number) return;
    layer = *number;
    const size_t end = name.find('.', 1);
    if (end == std::string_view::npos) return;
    mixture = name.substr(0, end + 1);
    name.remove_prefix(end + 1);
    of_router = name.starts_with(kGate);
    if (!name.starts_with(kExperts)) return;
    name.remove_prefix(kExperts.size());
    expert = take_number(name).value_or(-1);
    rest = name;
  }

  std::string with_expert(int id) const {
    return fmt::format("{}{}{}{}{}{}", kLayerPrefix, layer, mixture, kExperts, id, rest);
  }
};

class OldTensors {
 public:
  explicit OldTensors(const std::vector<NamedTensor>& tensors) {
    for (const NamedTensor& tensor : tensors) by_name_[tensor.name] = tensor.memory;
  }

  const Tensor& at(const std::string& name) const {
    const auto found = by_name_.find(name);
    CADRE_CHECK(found != by_name_.end(), fmt::format("the checkpoint has no tensor {}", name),
                "is it of another kind of model?");
    return found->second;
  }

 private:
  std::map<std::string, Tensor> by_name_;
};

// `count` elements, each `stride` from the next, of which element i of the sum begins at first(i).
template <class First>
void weighted_mean(const ExpertSum& sum, int64_t count, int64_t stride, First&& first, float* to) {
  int64_t total = 0;
  for (const ExpertSum::Part& part : sum.parts) total += part.weight;
  for (int64_t i = 0; i < count; ++i) {
    double value = 0.0;
    for (const ExpertSum::Part& part : sum.parts) {
      value += static_cast<double>(part.weight) * static_cast<double>(first(part.expert)[i * stride]);
    }
    to[i * stride] = static_cast<float>(value / static_cast<double>(total));
  }
}

void copy(const std::string& name, const Tensor& from, const Tensor& to) {
  CADRE_CHECK(from.same_shape(to), fmt::format("{} is {} and would become {}", name, from.describe(), to.describe()),
              "this tensor does not follow the number of experts");
  std::memcpy(to.raw(), from.raw(), to.bytes());
}

void sum_of_router(const std::string& name, const Tensor& from, const Tensor& to, const std::vector<ExpertSum>& sums,
                   int num_old) {
  const auto num_new = static_cast<int64_t>(sums.size());
  const int last = from.num_dims() - 1;
  const auto* old = from.data<float>();
  if (from.dim(0) == num_old && to.dim(0) == num_new) {
    const int64_t width = from.row_numel();
    for (int64_t e = 0; e < num_new; ++e) {
      weighted_mean(
          sums[static_cast<size_t>(e)], width, 1, [&](int expert) { return old + expert * width; },
          to.data<float>() + e * width);
    }
  } else if (from.dim(last) == num_old && to.dim(last) == num_new) {
    for (int64_t row = 0; row < from.dim(0); ++row) {
      for (int64_t e = 0; e < num_new; ++e) {
        weighted_mean(
            sums[static_cast<size_t>(e)], 1, 1, [&](int expert) { return old + row * num_old + expert; },
            to.data<float>() + row * num_new + e);
      }
    }
  } else {
    copy(name, from, to);
  }
}

double rms(const Tensor& weights) {
  const auto* values = weights.data<float>();
  double squares = 0.0;
  for (int64_t i = 0; i < weights.numel(); ++i) squares += static_cast<double>(values[i]) * values[i];
  return weights.numel() == 0 ? 0.0 : std::sqrt(squares / static_cast<double>(weights.numel()));
}

}  // namespace

ExpertSums twice(const std::vector<int>& layers, int num_experts) {
  std::vector<ExpertSum> doubled;
  for (int e = 0; e < num_experts; ++e) doubled.insert(doubled.end(), 2, ExpertSum{{{e, 1}}});
  ExpertSums sums;
  for (const int layer : layers) sums[layer] = doubled;
  return sums;
}

void sum_experts(const std::vector<NamedTensor>& from, const std::vector<NamedTensor>& to, const ExpertSums& sums,
                 int num_old_experts) {
  const OldTensors old(from);
  for (const auto& [name, memory] : to) {
    const TensorName parsed(name);
    const auto of_layer = sums.find(parsed.layer);
    if (parsed.expert >= 0 && of_layer != sums.end()) {
      const ExpertSum& sum = of_layer->second.at(static_cast<size_t>(parsed.expert));
      std::map<int, const float*> parts;
      for (const ExpertSum::Part& part : sum.parts) {
        const Tensor& source = old.at(parsed.with_expert(part.expert));
        CADRE_ASSERT(source.same_shape(memory));
        parts[part.expert] = source.data<float>();
      }
      weighted_mean(
          sum, memory.numel(), 1, [&](int expert) { return parts.at(expert); }, memory.data<float>());
    } else if (parsed.of_router && of_layer != sums.end()) {
      sum_of_router(name, old.at(name), memory, of_layer->second, num_old_experts);
    } else {
      copy(name, old.at(name), memory);
    }
  }
}

void disturb_copies(const std::vector<NamedTensor>& values, double scale, uint64_t seed) {
  for (const auto& [name, memory] : values) {
    const TensorName parsed(name);
    if (parsed.expert < 0 || parsed.expert % 2 == 0) continue;
    const double deviation = scale * rms(memory);
    const Random random(seed, fmt::format("grow layer {}{}", parsed.layer, parsed.rest),
                        static_cast<uint64_t>(parsed.expert));
    auto* weights = memory.data<float>();
    for (int64_t i = 0; i < memory.numel(); ++i) {
      weights[i] += static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i)));
    }
  }
}

}  // namespace cadre
