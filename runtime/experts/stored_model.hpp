// SPDX-License-Identifier: Apache-2.0
// A whole model on one rank, with the state of its optimiser: what is read from a checkpoint, and what becomes one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "layers/model/config.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/data/order.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

class StoredModel {
 public:
  // Parameters and moments have memory; the moments are zero and the values undefined. `alone` has one rank.
  StoredModel(Communicator alone, const RunConfig& config);

  // Reads a checkpoint, and the moments too where they are. Moves on as load_checkpoint does on anything wrong.
  void load(const std::filesystem::path& checkpoint);

  // Values and moments, by the names that they have in files.
  std::vector<NamedTensor> values() { return name_values(worker_.store(), any_parameter); }
  std::vector<NamedTensor> moments() { return name_moments(optimizer_, any_parameter); }
  // To be called when the values were written by hand.
  void values_changed();

  // Writes run_folder/checkpoints/step_<step>, the tokenizer, and run_folder/run.toml, from which `cadre train` goes on at the step of the
  // manifest. The folder must have no checkpoints yet. Returns the path of the checkpoint.
  std::filesystem::path save(const std::filesystem::path& run_folder, const Manifest& origin);

  Worker& worker() { return worker_; }
  const RunConfig& config() const { return config_; }
  const Manifest& manifest() const { return manifest_; }

 private:
  RunConfig config_;
  Worker worker_;
  Optimizer optimizer_;
  Manifest manifest_;
};

// Keys of a model that name experts by their ids, which change when experts come or go.

// Throws where such a key is set that cannot be carried over.
void check_unnamed(const ModelConfig& model);

// What the experts of a model are like, measured on a probe: rows that real text brings to each mixture layer, which every
// expert of the layer is run on.
struct LayerSurvey {
  int layer = 0;
  std::vector<double> norms = {};       // [E] Euclidean norm of all weights of an expert
  std::vector<int64_t> load = {};       // [E] slots that the router gave it on the probe
  std::vector<double> similarity = {};  // [E,E] cosine of the outputs of two experts, all rows of the probe together
  std::vector<float> rows = {};         // [T,H] what came to the layer
  std::vector<float> outputs = {};      // [E,T,H] what each expert made of it

  int num_experts() const { return static_cast<int>(load.size()); }
  double similarity_of(int a, int b) const { return similarity[static_cast<size_t>(a * num_experts() + b)]; }
};

// Over the first `num_sequences` sequences that `reader` gives at its first step, one survey a mixture layer. Holds the
// outputs of all experts: E T H numbers a layer.
std::vector<LayerSurvey> survey_experts(StoredModel& model, const BatchReader& reader, int64_t num_sequences);

// The outputs [T,H] of one expert of a layer for rows [T,H].
std::vector<float> run_expert(StoredModel& model, int layer, int expert, const std::vector<float>& rows);

}  // namespace cadre
