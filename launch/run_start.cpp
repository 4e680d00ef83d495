// SPDX-License-Identifier: Apache-2.0
#include "launch/run_start.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "launch/checkpoint_argument.hpp"
#include "layers/model/config.hpp"
#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/config_changes.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/data/indexed_file.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "runtime/train/run_folder.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

void check_readable(const std::string& key, const std::string& path, const char* hint) {
  if (::access(path.c_str(), R_OK) == 0) return;
  throw Error(ErrorKind::input, fmt::format("{} = {}: {}", key, path, std::strerror(errno)), hint);
}

// Also the prefix of the two files of Megatron-LM.
void check_data(const std::string& key, const std::string& path, const char* hint) {
  const auto files = find_indexed_files(path);
  check_readable(key, files ? files->ids : path, hint);
}

// The folder itself, or the nearest one above it that is there.
fs::path nearest_above(fs::path path) {
  std::error_code error;
  while (!path.empty() && !fs::exists(path, error)) {
    if (!path.has_parent_path() || path == path.parent_path()) return ".";
    path = path.parent_path();
  }
  return path.empty() ? fs::path(".") : path;
}

void check_out(const std::string& out) {
  const fs::path above = nearest_above(out);
  const char* hint = "name a folder that can be written with out=PATH";
  std::error_code error;
  CADRE_CHECK(fs::is_directory(above, error), fmt::format("out = {}: {} is not a folder", out, above.string()), hint);
  CADRE_CHECK(::access(above.c_str(), W_OK | X_OK) == 0,
              fmt::format("out = {}: {} cannot be written: {}", out, above.string(), std::strerror(errno)), hint);
}

// train.init; or what checkpoint.resume names where another program wrote it, which has no state to go on from.
std::string weights_to_start_from(const RunConfig& config) {
  const std::string& resume = config.checkpoint.resume;
  if (!config.train.init.empty() || resume == "auto" || resume == "never") return config.train.init;
  const std::filesystem::path path = resume;
  std::error_code none;
  const bool is_foreign =
      std::filesystem::exists(path / kConfigFile, none) && !std::filesystem::exists(path / kManifestFile, none);
  return is_foreign ? resume : "";
}

// The keys of [model] that a run has otherwise than the files that it starts from: "model.hidden_size = 128, there 32".
std::string model_keys_of_run(const ModelConfig& stored, const ModelConfig& model) {
  RunConfig there;
  RunConfig here;
  there.model = stored;
  here.model = model;
  std::string text;
  for (const KeyChange& change : changed_keys(there, here)) {
    text += fmt::format("{}{} = {}, there {}", text.empty() ? "" : "; ", change.key, change.now, change.before);
  }
  return text;
}

// What `init` means; where that was pruned, what the adapters of the run have kept of it.
std::filesystem::path find_base(const RunConfig& config, const std::string& init) {
  const std::string kept = on_kept_base(config).train.init;
  const bool is_gone = has_adapters(config) && kept != config.train.init && checkpoints_at(init).empty();
  return find_checkpoint(is_gone ? kept : init);
}

// Without MTP modules, which may be new.
int64_t size_of_shape(ModelConfig model) {
  model.num_nextn_predict_layers = 0;
  return count_parameters(model).total;
}

// Keys of the run file may change how the model is trained, not which tensors it has.
void check_shape(const std::filesystem::path& checkpoint, const ModelConfig& model) {
  constexpr const char* kHint =
      "leave the keys of its shape, such as model.num_hidden_layers, to the config.json in train.init";
  const ModelConfig stored = read_model_config(checkpoint);
  CADRE_CHECK(size_of_shape(stored) == size_of_shape(model),
              fmt::format("{}: the model of this run has another shape: {}", checkpoint.string(),
                          model_keys_of_run(stored, model)),
              kHint);
  const std::vector<std::string> known = unread_tensors(checkpoint, stored);
  for (const std::string& name : unread_tensors(checkpoint, model)) {
    CADRE_CHECK(std::ranges::find(known, name) != known.end(),
                fmt::format("{}: the model of this run has no place for {}", checkpoint.string(), name), kHint);
  }
}

// MTP modules would only train adapters that no other program knows of.
void resolve_adapters(const std::filesystem::path& base, RunConfig& config) {
  config.model.num_nextn_predict_layers = 0;
  if (config.adapter.weights != "auto") return;
  const ShardedReader reader(base);
  const bool has_fp8 =
      std::ranges::any_of(reader.weight_map(), [](const auto& entry) { return is_scale_name(entry.first); });
  config.adapter.weights = has_fp8 ? "fp8" : "bf16";
}

// What a config.json that the model was made from has and the run does not use.
std::string model_config_notes(const std::filesystem::path& path) {
  if (path.empty()) return "";
  std::vector<std::string> unused;
  read_model_config(path, &unused);
  std::string notes = unused_keys_note(path, unused);
  const std::string weights = weights_in(path.parent_path());
  if (!weights.empty()) {
    notes +=
        fmt::format("note: {}: only the shape is read; the weights beside it ({}) are not used, as train.init would\n",
                    path.string(), weights);
  }
  return notes;
}

// What the files have and the run does not use, and what it has otherwise.
std::string notes_on_init(const RunConfig& config) {
  const std::filesystem::path checkpoint = find_base(config, config.train.init);
  const std::string others = model_keys_of_run(read_model_config(checkpoint), config.model);
  return checkpoint_notes(checkpoint) +
         (others.empty() ? "" : fmt::format("note: {}: this run has {}\n", checkpoint.string(), others));
}

}  // namespace

RunConfig config_of_run(const std::string& run_file, std::vector<std::string> overrides) {
  RunConfig config = load_run_config(run_file, overrides);
  const std::string init = weights_to_start_from(config);
  if (init.empty()) return config;
  const std::filesystem::path checkpoint = find_base(config, init);
  CADRE_CHECK(!is_adapter(checkpoint), fmt::format("train.init = {} holds adapters and no model", init),
              "merge them first: cadre export MODEL --adapter DIR --out NEW; or begin with them: adapter.init=DIR");
  const std::filesystem::path model = checkpoint / kConfigFile;
  std::error_code none;
  CADRE_CHECK(config.model_config_read.empty() || std::filesystem::equivalent(config.model_config_read, model, none),
              fmt::format("model.config = {} and train.init = {} are given", config.model_config_read, init),
              "leave out model.config: the config.json in train.init defines the model");
  overrides.push_back("model.config=" + model.string());
  config = load_run_config(run_file, overrides);
  if (config.train.init.empty()) {
    config.train.init = init;
    config.checkpoint.resume = "auto";
  }
  if (has_adapters(config)) resolve_adapters(checkpoint, config);
  check_shape(checkpoint, config.model);
  const bool has_tokenizer = !read_tokenizer_files(checkpoint.string()).empty();
  if (config.data.tokenizer == kByteTokenizer && has_tokenizer) config.data.tokenizer = checkpoint.string();
  return config;
}

std::string notes_on_start(const RunConfig& config) {
  return config.train.init.empty() ? model_config_notes(config.model_config_read) : notes_on_init(config);
}

void check_paths(const RunConfig& config) {
  ErrorList errors;
  const char* key = config.data.mixture.empty() ? "data.path" : "data.mixture";
  for (const MixtureEntry& entry : mixture_entries(config.data)) {
    errors.collect([&] { check_data(key, entry.path, "a text file, a folder of them, or an llm.c token file"); });
  }
  if (!config.data.validation.empty()) {
    errors.collect([&] {
      check_data("data.validation", config.data.validation, "held-out data of the same format as data.path");
    });
  }
  if (config.data.tokenizer != kByteTokenizer) {
    errors.collect([&] {
      check_readable("data.tokenizer", config.data.tokenizer,
                     "bytes, a tokenizer.json, a tokenizer.model or a folder with one");
    });
  }
  errors.collect([&] { check_out(config.out); });
  errors.raise();
}

void check_out_folder(const RunConfig& config) {
  const std::string weights = weights_in(config.out);
  CADRE_CHECK(weights.empty(), fmt::format("out = {} holds the weights of a model ({})", config.out, weights),
              fmt::format("name another folder; train.init={} starts from these weights", config.out));
}

}  // namespace cadre
