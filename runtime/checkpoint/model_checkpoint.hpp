// SPDX-License-Identifier: Apache-2.0
// Saves and loads a model that is spread over ranks: a Hugging Face directory (config.json, sharded safetensors and
// their index) plus optimizer/ (the moments of AdamW), run.toml and cadre.json. Names hold global expert ids, so any
// number of ranks loads what any other number saved. Each part of a fused parameter is a tensor of its own; its moments
// are `<name>.exp_avg` and `<name>.exp_avg_sq`. Values are f32, moments what train.moments says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "layers/model/config.hpp"
#include "layers/tensor/parameter_store.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/named_tensors.hpp"
#include "runtime/optim/adamw.hpp"

namespace cadre {

// Who writes what: of the ranks that hold the same tensor, one does.
struct CheckpointRanks {
  const Communicator& world;
  ParameterChoice writes;   // whether this rank does
  double deadline_seconds;  // of one wait: the slowest rank must have written its files within it
};

// What is known of the run at this point; the files of the manifest are filled in by save_checkpoint.
struct CheckpointState {
  Manifest manifest;
  ModelConfig model;
  std::string run_toml;
  std::map<std::string, std::string> more_files = {};  // name and content of what is to lie beside the model
};

// Collective over the world. Writes root/step_<step>, moves `latest`, keeps the newest `keep`. Returns the final path
// once the checkpoint stands. `root` of rank 0 counts; all hosts must see it. When a rank cannot write, all ranks throw
// an Error that names it; then nothing is committed and what was there before stands.
std::filesystem::path save_checkpoint(const CheckpointRanks& ranks, const std::filesystem::path& root,
                                      const CheckpointState& state, const ParameterStore& store, const AdamW& optimizer,
                                      size_t keep);

// Reads the values of all parameters of `store`, and the moments when `optimizer` is given. Each rank reads only what
// it holds; not collective. Files are verified against the manifest: the length of all, the checksum of those that are
// read. A missing tensor, a foreign shape or a damaged file throws, names file and tensor, and changes nothing.
// Tensors of bf16 and fp8 are converted. Returns the manifest; without an optimizer a directory of another program, which has
// no cadre.json, is fine too: it is not verified beyond its format, and the manifest is the default one.
Manifest load_checkpoint(const std::filesystem::path& directory, const ParameterStore& store, AdamW* optimizer);

// config.json of a checkpoint directory, or the file itself. Keys that change nothing are appended to `unused`, if given.
ModelConfig read_model_config(const std::filesystem::path& path, std::vector<std::string>* unused = nullptr);

}  // namespace cadre
