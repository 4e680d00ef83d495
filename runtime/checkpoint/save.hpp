// SPDX-License-Identifier: Apache-2.0
// Saves a model that is spread over ranks, at once or in the background; model_checkpoint.hpp says what the directory
// looks like. Stages, each of which all ranks begin only when the one before is done on all of them:
//   stage   rank 0 makes an empty directory aside
//   write   every rank writes the files of what it holds
//   commit  rank 0 writes the descriptions, puts everything onto the disk, renames the directory and moves `latest`
//   prune   rank 0 removes what is not to be kept
// When one of the first three fails on any rank, rank 0 removes what they made and what was there before stands.
#pragma once

#include <cstdint>
#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/group/agreement.hpp"
#include "comm/group/communicator.hpp"
#include "layers/model/config.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/optim/optimizer.hpp"

namespace cadre {

// Who writes what: of the ranks that hold the same tensor, one does.
struct CheckpointRanks {
  const Communicator& world;
  ParameterChoice writes;   // whether this rank does
  double deadline_seconds;  // of one wait: the slowest rank must have written its files within it
};

// What is known of the run at this point; the files of the manifest are filled in while it is saved.
struct CheckpointState {
  Manifest manifest;
  ModelConfig model;
  std::string run_toml;
  // Of a run that trains adapters: the directory holds them in one file, with this adapter_config.json, and no config.json.
  std::string adapter_config = {};
  std::map<std::string, std::string> more_files = {};  // name and content of what is to lie beside the model
};

// What became of a save; the same on all ranks.
struct SaveOutcome {
  std::filesystem::path path;      // where the checkpoint stands; empty when it does not
  std::optional<Failure> failure;  // why not, or why others could not be pruned
};

class CheckpointSave {
 public:
  // Collective over the world. Writes root/step_<step>, moves `latest`, removes what `keep` does not keep. `root` of rank 0 counts;
  // all hosts must see it. Without `space` the tensors are written as they lie there and must not change before the end,
  // and all work is done by the calling thread. With it they are copied there first, and threads of their own work on the
  // copy; the world must then be used for nothing else until the end.
  CheckpointSave(const CheckpointRanks& ranks, const std::filesystem::path& root, const CheckpointState& state,
                 const ParameterStore& store, const Optimizer& optimizer, const KeepRule& keep,
                 std::shared_ptr<Buffer> space = nullptr);

  // Does not wait: takes what has arrived and goes on from there. True once the save is over on this rank.
  bool poll();
  // Waits for the end.
  const SaveOutcome& finish();
  const SaveOutcome& outcome() const { return outcome_; }

  // Bytes that a copy of these tensors takes.
  static size_t copy_bytes(const std::vector<NamedTensor>& tensors);

 private:
  enum class Stage { stage, write, commit, prune, discard, over };
  struct Job;  // what the threads work on

  void begin(Stage stage);
  void next();
  void name_files();
  void take_shards();
  void fail(std::optional<Failure> failure);

  CheckpointRanks ranks_;
  std::shared_ptr<Job> job_;
  Stage stage_ = Stage::stage;
  std::future<AccountOrError> working_;
  std::optional<Agreement> agreement_;
  SaveOutcome outcome_;
};

// Collective over the world: saves at once and returns the final path once the checkpoint stands. A failure is thrown on
// all ranks and names the rank.
std::filesystem::path save_checkpoint(const CheckpointRanks& ranks, const std::filesystem::path& root,
                                      const CheckpointState& state, const ParameterStore& store,
                                      const Optimizer& optimizer, const KeepRule& keep);

}  // namespace cadre
