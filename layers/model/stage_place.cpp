// SPDX-License-Identifier: Apache-2.0
#include "layers/model/stage_place.hpp"

#include <algorithm>
#include <limits>
#include <vector>

namespace cadre {
namespace {

// Elements that a token is multiplied with.
double work_of(const LayerElements& layer) {
  return static_cast<double>(layer.attention + layer.router + layer.shared_experts + layer.dense + layer.met_experts);
}

// Of head and MTP modules, each of which has a product in front, a layer, and the head once more.
double work_of_end(const ModelConfig& config) {
  const auto head = static_cast<double>(config.vocab_size * config.hidden_size);
  double work = head;
  for (int64_t module = 0; module < config.num_nextn_predict_layers; ++module) {
    work += 2.0 * static_cast<double>(config.hidden_size * config.hidden_size) + head +
            work_of(layer_elements(config, config.num_hidden_layers + module));
  }
  return work;
}

// Where stages begin, and the end of the last. Of all cuts whose busiest stage has the least work, one with the least sum of squares.
class BalancedCut {
 public:
  BalancedCut(const ModelConfig& config, int num_stages)
      : stages_(static_cast<size_t>(num_stages)), sums_(1, 0.0), end_(work_of_end(config)) {
    for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      sums_.push_back(sums_.back() + work_of(layer_elements(config, layer)));
    }
  }

  std::vector<int> begins() const {
    const auto larger = [](double before, double work) { return std::max(before, work); };
    const double limit = best(larger, std::numeric_limits<double>::infinity()).value;
    const auto squares = [](double before, double work) { return before + work * work; };
    return best(squares, limit).begins;
  }

 private:
  struct Best {
    double value;
    std::vector<int> begins;
  };

  double work(size_t stage, size_t first, size_t last) const {
    return sums_[last] - sums_[first] + (stage + 1 == stages_ ? end_ : 0.0);
  }

  // Of all cuts without a stage above `limit` the one with the least `fold` over the work of its stages.
  template <class Fold>
  Best best(Fold fold, double limit) const {
    const size_t layers = sums_.size() - 1;
    constexpr double kNone = std::numeric_limits<double>::infinity();
    std::vector<std::vector<double>> value(stages_ + 1, std::vector<double>(layers + 1, kNone));
    std::vector<std::vector<size_t>> from(stages_ + 1, std::vector<size_t>(layers + 1, 0));
    value[0][0] = 0.0;
    for (size_t stage = 0; stage < stages_; ++stage) {
      for (size_t last = stage + 1; last <= layers; ++last) {
        for (size_t first = stage; first < last; ++first) {
          const double here = work(stage, first, last);
          if (here > limit || value[stage][first] == kNone) continue;
          const double folded = fold(value[stage][first], here);
          if (folded >= value[stage + 1][last]) continue;
          value[stage + 1][last] = folded;
          from[stage + 1][last] = first;
        }
      }
    }
    std::vector<int> begins(stages_ + 1, static_cast<int>(layers));
    for (size_t stage = stages_; stage > 0; --stage) {
      begins[stage - 1] = static_cast<int>(from[stage][static_cast<size_t>(begins[stage])]);
    }
    return {value[stages_][layers], begins};
  }

  size_t stages_;
  std::vector<double> sums_;  // of the layers before
  double end_;
};

}  // namespace

LayerRange layers_of(const ModelConfig& config, const StagePlace& place) {
  const int64_t layers = config.num_hidden_layers;
  if (place.cut == StageCut::balanced && layers >= place.count) {
    const std::vector<int> begins = BalancedCut(config, place.count).begins();
    return {begins[static_cast<size_t>(place.index)], begins[static_cast<size_t>(place.index) + 1]};
  }
  return {static_cast<int>(layers * place.index / place.count),
          static_cast<int>(layers * (place.index + 1) / place.count)};
}

}  // namespace cadre
