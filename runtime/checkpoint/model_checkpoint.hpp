// SPDX-License-Identifier: Apache-2.0
// A checkpoint of a model that is spread over ranks, and how it is loaded; save.hpp writes it. A Hugging Face directory
// (config.json, sharded safetensors and their index) plus optimizer/ (its moments), run.toml and cadre.json.
// Names hold global expert ids, so any number of ranks loads what any other number saved. Each part of a fused parameter
// is a tensor of its own; its moments are `<name>.exp_avg` and `<name>.exp_avg_sq`, or `<name>.momentum` of Muon. Values are
// f32, moments what train.moments says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "layers/model/config.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/optim/optimizer.hpp"

namespace cadre {

// The tensors of a checkpoint under the names they have in its files, and where they lie in this rank's memory.

// A tensor of a file and the memory that it is written from or read into.
struct NamedTensor {
  std::string name;
  Tensor memory;
};

using ParameterChoice = std::function<bool(const Parameter&)>;
inline bool any_parameter(const Parameter& /*parameter*/) { return true; }
// What is saved: all but fixed weights, which stay in the files that they came from.
inline bool saved_parameter(const Parameter& parameter) { return parameter.placement != Placement::fixed; }
inline bool fixed_parameter(const Parameter& parameter) { return !saved_parameter(parameter); }

// The chosen parameters; each part of a fused one is a tensor of its own. Nothing is under way in the memory of the store
// then, nor in that of its optimizer: the host may read and write.
std::vector<NamedTensor> name_values(const ParameterStore& store, const ParameterChoice& chosen);

// The scales of those that are fixed in fp8, under the names of files: `<part name>_scale_inv`.
std::vector<NamedTensor> name_scales(const ParameterStore& store, const ParameterChoice& chosen);

// The values that files hold once more under other names (Parameter::copies).
std::vector<NamedTensor> name_copies(const ParameterStore& store, const ParameterChoice& chosen);

// The moments of each of these: `<part name>.exp_avg` and `<part name>.exp_avg_sq`, or `<part name>.momentum`.
std::vector<NamedTensor> name_moments(const Optimizer& optimizer, const ParameterChoice& chosen);

std::vector<int64_t> shape_of(const Tensor& tensor);

// A checkpoint that is whole, of another model: a tensor is missing or has another shape.
class Misfit : public Error {
 public:
  using Error::Error;
};

inline constexpr const char* kConfigFile = "config.json";
inline constexpr const char* kRunFile = "run.toml";
inline constexpr const char* kOptimizerFolder = "optimizer";

// Reads the values of the chosen parameters of `store`, and the moments when `optimizer` is given. Each rank reads only what
// it holds; not collective. Files are verified against the manifest: the length of all, the checksum of those that are
// read. A missing tensor, a foreign shape or a damaged file throws, names file and tensor, and changes nothing.
// Tensors of bf16 and fp8 are converted; `rounds`, if given, receives whether a value was rounded to the format of its tensor in
// `store`. Returns the manifest; without an optimizer a directory of another program, which has
// no cadre.json, is fine too: it is not verified beyond its format, and the manifest is the default one.
Manifest load_checkpoint(const std::filesystem::path& directory, const ParameterStore& store, Optimizer* optimizer,
                         const ParameterChoice& chosen = any_parameter, bool* rounds = nullptr);

// config.json of a checkpoint directory, or the file itself. Keys that change nothing are appended to `unused`, if given.
ModelConfig read_model_config(const std::filesystem::path& path, std::vector<std::string>* unused = nullptr);

}  // namespace cadre
