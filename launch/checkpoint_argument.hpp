// SPDX-License-Identifier: Apache-2.0
// The CHECKPOINT argument of commands: which directory it means, and how the model in it was trained.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/base/fields.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

Field checkpoint_argument(std::string& path);

// A checkpoint directory is itself; a run folder means its checkpoints/latest. Throws when it is neither.
std::filesystem::path find_checkpoint(const std::string& argument);

// A model and adapters on it.
struct ModelFiles {
  std::filesystem::path checkpoint;
  std::filesystem::path adapter = {};  // empty: none
};

// --adapter of a command.
Field adapter_option(std::string& path);

// As find_checkpoint. Where the argument holds adapters, they are those, and the model is the one that they were trained on;
// else `adapter`, unless it is empty, names them. Throws where they do not fit the model.
ModelFiles find_model(const std::string& argument, const std::string& adapter);

// The configuration of the run that trained the adapters, or of the checkpoint without, with the model of the checkpoint and
// no adapters: they are merged when it is loaded.
RunConfig run_config_of(const ModelFiles& files);

// Fills the parameters, merges the adapters. Throws as load_checkpoint does.
void load_model(const ModelFiles& files, const ParameterStore& store);

// The run.toml of the checkpoint, or defaults for one that another program wrote, with the model of its config.json.
// All ranks share one set of experts, in a row, whatever the run did; the tokenizer is that in the checkpoint, else bytes.
RunConfig run_config_of(const std::filesystem::path& checkpoint, std::vector<std::string>* unused = nullptr);

// --dead-experts of a command, in place of model.dead_experts: they are not chosen, and the living share their weights.
Field dead_experts_option(std::string& experts);
void leave_out(const std::string& experts, ModelConfig& model);

// --weights and --threads of a command that trains nothing, in place of compute.weights and compute.threads.
struct ComputeArguments {
  std::string weights = "fp32";
  int64_t threads = 0;  // as in the run
};
Field weights_option(ComputeArguments& compute);
Field threads_option(ComputeArguments& compute);
void apply(const ComputeArguments& arguments, ComputeConfig& compute);

// --placement of a command: where the experts lie, for this many ranks.
Field placement_option(std::string& file);

// Of how many tokens the best expert is one of those that were left out; both are counted once a layer. A line.
std::string dead_experts_note(const ModelConfig& model, int64_t rerouted, int64_t tokens);

// The note of rank 0 on keys of config.json without effect; empty when there are none.
std::string unused_keys_note(const std::filesystem::path& path, const std::vector<std::string>& unused);

// Notes on a checkpoint, one a line: keys of config.json and tensors without effect, MTP modules that the files lack. Throws
// as unread_tensors does.
std::string checkpoint_notes(const std::filesystem::path& checkpoint);

// A worker without gradients, and without the MTP modules.
WorkerOptions inference_options(const RunConfig& config);

// --task of a command: the task of all tokens, in place of what task.recognise would find. As a number, kNoTask for "".
Field task_option(std::string& task);
int32_t task_of(const std::string& task);

// --data of a command, in place of what the run was trained on.
void take_data(const std::string& path, DataConfig& data);

struct HeldOut {
  std::vector<DataPart> parts;  // each window once a round
  std::vector<DataSummary> summaries;
};

// The part of the data that the run did not train on, or all where it held out none. Throws when the configuration names no data.
HeldOut held_out(const RunConfig& config);

}  // namespace cadre
