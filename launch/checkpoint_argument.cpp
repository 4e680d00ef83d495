// SPDX-License-Identifier: Apache-2.0
#include "launch/checkpoint_argument.hpp"

#include <algorithm>
#include <span>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors_header.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

namespace fs = std::filesystem;

Field checkpoint_argument(std::string& path) {
  return {"CHECKPOINT", &path, any(), "a checkpoint directory, or the folder of a run (its latest checkpoint)"};
}

fs::path find_checkpoint(const std::string& argument) {
  const std::vector<fs::path> found = checkpoints_at(argument);
  CADRE_CHECK(!found.empty() || fs::exists(argument), fmt::format("{}: no such directory", argument),
              "give a checkpoint directory or the folder of a run");
  CADRE_CHECK(!found.empty(), fmt::format("{}: neither a checkpoint nor the folder of a run", argument),
              "a checkpoint holds config.json and *.safetensors, the folder of a run checkpoints/latest");
  return found.front();
}

RunConfig run_config_of(const fs::path& checkpoint, std::vector<std::string>* unused) {
  const fs::path run_file = checkpoint / "run.toml";
  RunConfig config = fs::exists(run_file) ? load_run_config(run_file.string(), {}) : RunConfig();
  config.model = read_model_config(checkpoint, unused);
  config.data.sequence_length = std::min(config.data.sequence_length, config.model.max_position_embeddings);
  config.parallel = {};
  config.data.tokenizer = read_tokenizer_files(checkpoint.string()).empty() ? kByteTokenizer : checkpoint.string();
  return config;
}

Field adapter_option(std::string& path) {
  return {"adapter", &path, any(),
          "directory with adapters of this model, of Cadre or PEFT, or the folder of a run that trained some; they are "
          "merged into the weights"};
}

ModelFiles find_model(const std::string& argument, const std::string& adapter) {
  ModelFiles files = {.checkpoint = find_checkpoint(argument)};
  if (is_adapter(files.checkpoint)) {
    CADRE_CHECK(adapter.empty(), fmt::format("{} and --adapter both name adapters", argument), "name the model first");
    files.adapter = files.checkpoint;
    const std::string base = StoredAdapter(files.adapter).base();
    std::vector<fs::path> found = checkpoints_at(base);
    // A run folder that was moved holds its base where it held it before.
    if (found.empty() && !base.empty())
      found = checkpoints_at(files.adapter.parent_path().parent_path() / fs::path(base).filename());
    CADRE_CHECK(!found.empty(),
                fmt::format("{}: base_model_name_or_path = \"{}\" is no directory of a model",
                            (files.adapter / kAdapterConfigFile).string(), base),
                "name the model, and the adapters with --adapter DIR");
    files.checkpoint = found.front();
  } else if (!adapter.empty()) {
    files.adapter = find_checkpoint(adapter);
    CADRE_CHECK(is_adapter(files.adapter), fmt::format("--adapter {}: it holds no {}", adapter, kAdapterConfigFile),
                "name a directory with adapters, or the folder of a run that trained some");
  }
  if (!files.adapter.empty()) StoredAdapter(files.adapter).check_base(files.checkpoint);
  return files;
}

RunConfig run_config_of(const ModelFiles& files) {
  RunConfig config = run_config_of(files.checkpoint);
  if (files.adapter.empty() || !fs::exists(files.adapter / kRunFile)) return config;
  const RunConfig trained = load_run_config((files.adapter / kRunFile).string(), {});
  ModelConfig model = config.model;
  if (model.eos_token_id < 0) model.eos_token_id = trained.model.eos_token_id;
  const std::string tokenizer = config.data.tokenizer;
  config = trained;
  config.model = model;
  config.data.tokenizer = tokenizer;
  config.parallel = {};
  config.adapter = {};
  return config;
}

void load_model(const ModelFiles& files, const ParameterStore& store) {
  load_checkpoint(files.checkpoint, store, nullptr);
  if (!files.adapter.empty()) StoredAdapter(files.adapter).merge(store);
}

Field dead_experts_option(std::string& experts) {
  return {
      "dead-experts", &experts, any(),
      "experts to switch off in every layer, such as 3,7; the others share their weights. If all are off, the shared "
      "experts remain"};
}

void leave_out(const std::string& experts, ModelConfig& model) {
  if (experts.empty()) return;
  set_key(model, "dead_experts", experts);
  check(model);
}

Field task_option(std::string& task) {
  return {"task", &task, any(), "task of all tokens, such as CODING; default: what task.recognise of the run finds"};
}

int32_t task_of(const std::string& task) {
  return task.empty() ? kNoTask : static_cast<int32_t>(task_type_named(task, "--task"));
}

void take_data(const std::string& path, DataConfig& data) {
  if (path.empty()) return;
  if (!data.validation.empty()) data.validation = path;
  data.path = path;
  data.mixture.clear();
}

Field weights_option(ComputeArguments& compute) {
  return {"weights", &compute.weights, one_of({"fp32", "bf16", "int8", "fp8"}),
          "format that the weights are kept in, on CPUs"};
}

Field threads_option(ComputeArguments& compute) {
  return {"threads", &compute.threads, at_least(0), "threads that compute in a rank; 0: as in the run"};
}

void apply(const ComputeArguments& arguments, ComputeConfig& compute) {
  compute.weights = arguments.weights;
  if (arguments.threads > 0) compute.threads = arguments.threads;
}

Field placement_option(std::string& file) {
  return {"placement", &file, any(),
          "file that assigns experts and copies to these ranks, from cadre plan placement --json"};
}

std::string dead_experts_note(const ModelConfig& model, int64_t rerouted, int64_t tokens) {
  return fmt::format("without experts {}: the best expert of {:.2f} % of the tokens, over the layers\n",
                     key_text(model, "dead_experts"),
                     100.0 * static_cast<double>(rerouted) / static_cast<double>(tokens));
}

std::string unused_keys_note(const fs::path& path, const std::vector<std::string>& unused) {
  if (unused.empty()) return "";
  return fmt::format("note: {}: keys without effect: {}\n", path.string(), fmt::join(unused, ", "));
}

std::string checkpoint_notes(const fs::path& checkpoint) {
  std::vector<std::string> unused;
  const ModelConfig model = read_model_config(checkpoint, &unused);
  const std::vector<std::string> unread = unread_tensors(checkpoint, model);
  std::string notes = unused_keys_note(checkpoint / kConfigFile, unused);
  if (!unread.empty()) {
    constexpr size_t kMostNamed = 20;
    std::vector<std::string> named;
    for (const std::string& name : std::span(unread).first(std::min(unread.size(), kMostNamed))) {
      named.push_back(quote_name(name));
    }
    notes += fmt::format("note: {}: tensors that are not read: {}{}\n", checkpoint.string(), fmt::join(named, ", "),
                         unread.size() > kMostNamed ? fmt::format(" and {} more", unread.size() - kMostNamed) : "");
  }
  if (stored_mtp_modules(checkpoint, model) != model.num_nextn_predict_layers) {
    notes += fmt::format("note: {}: num_nextn_predict_layers = {}, but the files hold no MTP module\n",
                         checkpoint.string(), model.num_nextn_predict_layers);
  }
  return notes;
}

WorkerOptions inference_options(const RunConfig& config) {
  ModelConfig model = config.model;
  model.num_nextn_predict_layers = 0;
  return {.model = model,
          .parallel = config.parallel,
          .exchange = config.exchange,
          .compute = config.compute,
          .with_grad = false};
}

HeldOut held_out(const RunConfig& config) {
  const DataConfig& data = config.data;
  CADRE_CHECK(!data.path.empty() || !data.mixture.empty(),
              "--data is missing, and the checkpoint does not name its training data",
              "a text file, a folder of them, or an llm.c token file");
  if (!data.validation.empty()) {
    OpenedPart opened = open_validation(data, config.model);
    HeldOut whole;
    whole.parts.push_back(std::move(opened.part));
    whole.summaries.push_back(std::move(opened.summary));
    return whole;
  }
  Dataset dataset = open_dataset(data, config.model);
  if (data.validation_fraction > 0.0) return {std::move(dataset.validation), std::move(dataset.summaries)};
  return {each_window_once(std::move(dataset.train), data.sequence_length), std::move(dataset.summaries)};
}

}  // namespace cadre
