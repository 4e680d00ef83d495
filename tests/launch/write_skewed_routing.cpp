// SPDX-License-Identifier: Apache-2.0
// Writes what train.replay reads, for all steps of a run: a router that stays skewed. Experts of a layer have weights
// 1 / rank^EXPONENT (Zipf), where the first experts have the first ranks; a token visits experts that are drawn by these weights, and by
// nothing but seed, layer and token id. EXPONENT = 0: tokens visit experts in turns, whatever they are.
// Usage: write_skewed_routing RUN.toml FOLDER EXPONENT [key=value ...]
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/random.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/data/order.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

class Skew {
 public:
  Skew(const RunConfig& config, double exponent) : config_(config), exponent_(exponent) {
    for (int64_t e = 0; e < config.model.n_routed_experts; ++e) {
      weights_.push_back(1.0 / std::pow(static_cast<double>(e + 1), exponent));
    }
  }

  // Of token `token`, the `index`th of its batch: num_experts_per_tok different ones.
  std::vector<int64_t> choose(int layer, int32_t token, int64_t index) const {
    const int64_t slots = config_.model.num_experts_per_tok;
    std::vector<int64_t> chosen;
    if (exponent_ == 0.0) {
      for (int64_t k = 0; k < slots; ++k) chosen.push_back((index * slots + k) % config_.model.n_routed_experts);
      return chosen;
    }
    const Random random(static_cast<uint64_t>(config_.seed) + static_cast<uint64_t>(layer), "skew",
                        static_cast<uint64_t>(token));
    std::vector<double> left = weights_;
    for (int64_t k = 0; k < slots; ++k) {
      double total = 0.0;
      for (const double weight : left) total += weight;
      double at = total * random.uniform(static_cast<uint64_t>(k));
      size_t expert = 0;
      while (expert + 1 < left.size() && (left[expert] == 0.0 || at >= left[expert])) at -= left[expert++];
      chosen.push_back(static_cast<int64_t>(expert));
      left[expert] = 0.0;
    }
    return chosen;
  }

 private:
  const RunConfig& config_;
  double exponent_;
  std::vector<double> weights_;
};

void write_step(const RunConfig& config, const BatchReader& reader, const Skew& skew, int64_t step,
                const fs::path& folder) {
  const int64_t num_tokens = config.train.batch * config.data.sequence_length;
  std::vector<int32_t> tokens(static_cast<size_t>(num_tokens));
  std::vector<int32_t> targets(tokens.size());
  reader.fill_batch(step - 1, 0, config.train.batch, tokens, targets);
  std::vector<std::vector<int64_t>> ids;
  std::vector<TensorSource> tensors;
  for (const int layer : moe_layers_of(config.model)) {
    std::vector<int64_t>& all = ids.emplace_back();
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (const int64_t expert : skew.choose(layer, tokens[static_cast<size_t>(i)], i)) all.push_back(expert);
    }
  }
  for (size_t mixture = 0; mixture < ids.size(); ++mixture) {
    tensors.push_back({fmt::format("layers.{}.topk_indices", moe_layers_of(config.model)[mixture]),
                       DType::i64,
                       {num_tokens, config.model.num_experts_per_tok},
                       std::as_bytes(std::span(ids[mixture]))});
  }
  write_safetensors((folder / fmt::format("step_{:08d}.safetensors", step)).string(), tensors);
}

void write_all(const RunConfig& config, const fs::path& folder, double exponent) {
  const Dataset dataset = open_dataset(config.data, config.model);
  const BatchReader reader(dataset.train, config.data.sequence_length, config.train.batch,
                           static_cast<uint64_t>(config.seed));
  fs::create_directories(folder);
  const Skew skew(config, exponent);
  for (int64_t step = 1; step <= config.train.steps; ++step) write_step(config, reader, skew, step, folder);
}

}  // namespace
}  // namespace cadre

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> overrides(argv + 4, argv + argc);
    cadre::write_all(cadre::load_run_config(argv[1], overrides), argv[2], std::stod(argv[3]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "write_skewed_routing: %s\n", error.what());
    return 1;
  }
  return 0;
}
