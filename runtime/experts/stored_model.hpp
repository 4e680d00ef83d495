// SPDX-License-Identifier: Apache-2.0
// A whole model on one rank, with the state of its optimiser: what is read from a checkpoint, and what becomes one.
#pragma once

#include <filesystem>

#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/named_tensors.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/optim/adamw.hpp"
#include "runtime/train/worker.hpp"

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
  AdamW optimizer_;
  Manifest manifest_;
};

}  // namespace cadre
