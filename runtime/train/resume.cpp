// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/resume.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "comm/base/random.hpp"
#include "comm/group/agreement.hpp"
#include "comm/job/wait.hpp"
#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/config_changes.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/parallel/devices.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/train/saver.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// Rank 0 looks, because only one view of a shared file system can be right.
std::vector<fs::path> checkpoints_to_try(const RunConfig& config, int rank) {
  const std::string& wanted = config.checkpoint.resume;
  if (rank != 0 || wanted == "never") return {};
  std::vector<fs::path> paths;
  if (wanted != "auto") {
    paths = checkpoints_at(wanted);
    if (paths.empty()) paths = {wanted};  // to be refused by name
    return paths;
  }
  for (const CheckpointPath& checkpoint : list_checkpoints(checkpoint_root(config))) paths.push_back(checkpoint.path);
  return paths;
}

// What rank 0 has.
template <class Value>
Value from_rank_0(const Communicator& world, const Value& mine) {
  static_assert(std::is_trivially_copyable_v<Value>);
  return wait(world.all_gather(mine), kFileDeadlineSeconds, {.phase = "resuming"}).front();
}

// The configuration that a checkpoint was saved with; none where it cannot be read, which `notes` say.
std::optional<RunConfig> saved_config(const fs::path& path, std::vector<std::string>& notes) {
  try {
    return load_run_config((path / kRunFile).string(), {});
  } catch (const Error& error) {
    notes.push_back(fmt::format("what changed since the save is not known: {}", error.text()));
    return std::nullopt;
  }
}

// The keys that changed and decide which tensors a checkpoint has, for a hint.
std::string changed_tensors(const fs::path& path, const RunConfig& config) {
  std::vector<std::string> ignored;
  const auto saved = saved_config(path, ignored);
  std::vector<std::string> texts;
  if (saved) {
    for (const KeyChange& change : changed_keys(*saved, config)) {
      if (change.key.starts_with("model.") || change.key == "optim.name") texts.push_back(change.text());
    }
  }
  return texts.empty() ? "" : fmt::format("; {}", fmt::join(texts, "; "));
}

// Throws, on all ranks alike, when a rank met weights that do not fit, or when the checkpoint has some that no rank has.
void check_fit(Worker& worker, const fs::path& path, const std::optional<Misfit>& misfit, const RunConfig& config) {
  const Communicator& world = worker.world();
  const auto failure = attempt_together(world, kFileDeadlineSeconds, "resuming", [&] {
    if (misfit) throw Error(*misfit);
  });
  const std::string hint =
      "go on with model and optimiser in its run.toml, choose another out=, or checkpoint.resume=never";
  if (failure) throw Error(failure->kind, failure->text, hint + changed_tensors(path, config));
  const ShardedReader reader(path);
  std::map<std::string_view, int64_t> used;
  for (const auto& [name, file] : reader.weight_map()) used[name] = 0;
  for (const auto& tensors :
       {name_values(worker.store(), saved_parameter), name_copies(worker.store(), saved_parameter)}) {
    for (const NamedTensor& tensor : tensors) {
      if (const auto found = used.find(tensor.name); found != used.end()) found->second = 1;
    }
  }
  std::vector<int64_t> flags;
  for (const auto& [name, flag] : used) flags.push_back(flag);
  flags = wait(world.all_reduce(std::move(flags), ReduceOp::max), kFileDeadlineSeconds, {.phase = "resuming"});
  std::vector<std::string_view> unused;
  for (size_t i = 0; const auto& [name, flag] : used) {
    if (flags[i++] == 0) unused.push_back(name);
  }
  CADRE_CHECK(unused.empty(),
              fmt::format("{} holds {} tensors that this configuration has not, the first is {}", path.string(),
                          unused.size(), unused.front()),
              hint + changed_tensors(path, config));
}

// Where the checkpoint says that its data is; of an earlier version by the configuration it was saved with.
DataPosition saved_position(const Manifest& manifest, const RunConfig& saved, const BatchReader& reader) {
  if (manifest.data) return *manifest.data;
  DataPosition position = reader.begin();
  position.seed = manifest.seed;
  position.sequence_length = saved.data.sequence_length;
  return reader.advance(position, manifest.step * saved.train.batch);
}

// On rank 0.
Resumed resumed_from(const fs::path& path, const Manifest& manifest, const RunConfig& config, const BatchReader& reader,
                     uint64_t fingerprint) {
  Resumed resumed;
  const std::optional<RunConfig> saved = saved_config(path, resumed.notes);
  if (saved) {
    const int64_t next = manifest.step + 1;
    for (const KeyChange& change : changed_keys(config_at(*saved, next), config_at(config, next))) {
      resumed.notes.push_back(change.text());
    }
  }
  ResumedPosition at = resume_position(saved_position(manifest, saved.value_or(config), reader), reader, fingerprint);
  if (!at.note.empty()) resumed.notes.push_back(std::move(at.note));
  resumed.progress = {manifest.step, manifest.tokens_seen, at.position};
  return resumed;
}

// Of a file that says which token begins a text nothing that was trained depends.
void check_tokenizer(const fs::path& path, const Manifest& manifest, const TokenizerFiles& files,
                     const std::string& tokenizer) {
  const char* name = main_file_of(files);
  bool is_same = true;
  for (const char* kind : {kTokenizerModelFile, kTokenizerJsonFile, kTiktokenFile}) {
    const auto saved = manifest.files.find(kind);
    if (saved == manifest.files.end() || saved->second == digest_of(byte_tokenizer_json())) continue;
    is_same &= files.contains(kind) && digest_of(files.at(kind)) == saved->second;
  }
  is_same &= name == nullptr || manifest.files.contains(name);
  CADRE_CHECK(
      is_same,
      fmt::format("{} was trained with another tokenizer than data.tokenizer = \"{}\"", path.string(), tokenizer),
      "go on with the tokenizer that lies in it");
}

}  // namespace

std::string config_hash(const RunConfig& config) {
  return fmt::format("{:016x}", hash_name(fmt::format("{} seed {} batch {} micro_batches {} sequence_length {}",
                                                      to_json(config.model).dump(), config.seed, config.train.batch,
                                                      config.train.micro_batches, config.data.sequence_length)));
}

Resumed resume_from_checkpoint(Worker& worker, Optimizer& optimizer, const RunConfig& config, const BatchReader& reader,
                               uint64_t fingerprint, const TokenizerFiles& tokenizer_files) {
  const Communicator& world = worker.world();
  Manifest manifest;
  std::optional<Misfit> misfit;
  // What belongs to another model is no damage.
  const auto load = [&](const fs::path& path) {
    misfit.reset();
    try {
      manifest = load_checkpoint(path, worker.store(), &optimizer, saved_parameter);
    } catch (const Misfit& error) {
      misfit = error;
    }
  };
  const fs::path path = load_newest(world, kFileDeadlineSeconds, checkpoints_to_try(config, world.rank()), load,
                                    [](const std::string& line) { say(line + '\n'); });
  Resumed resumed;
  if (path.empty()) {
    resumed.progress.data = reader.begin();
    resumed.progress.data.fingerprint = fingerprint;
  } else {
    check_fit(worker, path, misfit, config);
    check_tokenizer(path, manifest, tokenizer_files, config.data.tokenizer);
    if (world.rank() == 0) resumed = resumed_from(path, manifest, config, reader, fingerprint);
    std::vector<std::string> said_by_rank_0;
    const RunConfig before = saved_config(path, said_by_rank_0).value_or(config);
    optimizer.set_history(manifest.skipped_steps, manifest.updates.value_or(count_updates(before.train, manifest.step,
                                                                                          manifest.skipped_steps)));
  }
  resumed.progress = from_rank_0(world, resumed.progress);
  return resumed;
}

RunConfig with_products(const Communicator& world, RunConfig config, std::string& note) {
  if (config.compute.device != "cpu") return config;
  if (config.compute.products == "auto") {
    const auto saved = world.rank() == 0 ? config_to_resume(config) : std::nullopt;
    config.compute.products = products_of_rank_0(world, saved ? saved->compute.products : "auto");
  }
  note = note_on_machines(world, config.compute.products);
  return config;
}

void start_from_weights(Worker& worker, const RunConfig& config, std::vector<std::string>& notes) {
  const std::string& init = config.train.init;
  const int64_t num_layers = config.model.num_hidden_layers;
  bool rounds = false;
  const auto failure = attempt_together(worker.world(), kFileDeadlineSeconds, "loading weights", [&] {
    const std::vector<fs::path> found = checkpoints_at(init);
    CADRE_CHECK(!found.empty(), fmt::format("train.init = \"{}\" is no directory of a model", init),
                "it holds config.json and *.safetensors, or is the folder of a run");
    const bool has_mtp = stored_mtp_modules(found.front(), config.model) == config.model.num_nextn_predict_layers;
    const auto is_read = [&](const Parameter& parameter) {
      if (has_adapters(config) && !fixed_parameter(parameter)) return false;
      return has_mtp || layer_of(parameter.name()).value_or(0) < num_layers;
    };
    load_checkpoint(found.front(), worker.store(), nullptr, is_read, &rounds);
    notes.push_back(fmt::format("starts from the weights in {}", found.front().string()));
    if (!has_mtp) notes.push_back("the MTP modules, which it has none of, start with random weights");
  });
  if (failure) throw Error(failure->kind, failure->text, failure->hint);
  const auto any_rounds = wait(worker.world().all_reduce(int64_t{rounds}, ReduceOp::max), kFileDeadlineSeconds,
                               {.phase = "loading weights"});
  if (any_rounds != 0) {
    notes.push_back(
        fmt::format("weights of train.init are rounded to {} (adapter.weights); adapter.weights=fp32 keeps them",
                    config.adapter.weights));
  }
}

void start_from_adapters(Worker& worker, const RunConfig& config, std::vector<std::string>& notes) {
  const std::string& init = config.adapter.init;
  if (init.empty()) return;
  const auto failure = attempt_together(worker.world(), kFileDeadlineSeconds, "loading adapters", [&] {
    const std::vector<fs::path> found = checkpoints_at(init);
    CADRE_CHECK(!found.empty() && is_adapter(found.front()),
                fmt::format("adapter.init = \"{}\" is no directory of adapters", init),
                fmt::format("it holds {} and {}, or is the folder of a run that trained some", kAdapterConfigFile,
                            kAdapterFile));
    const StoredAdapter stored(found.front());
    CADRE_CHECK(!stored.has_joined_experts(),
                fmt::format("adapter.init = \"{}\" has adapters of all experts of a layer together", init),
                "merge them first: cadre export MODEL --adapter DIR --out NEW");
    const AdapterOptions options = adapter_options(config);
    CADRE_CHECK(stored.rank() == options.rank && stored.scale() == options.scale(),
                fmt::format("adapter.init = \"{}\" has rank {} and alpha / rank = {}, the run {} and {}", init,
                            stored.rank(), stored.scale(), options.rank, options.scale()),
                fmt::format("set adapter.rank={} adapter.alpha={}", stored.rank(),
                            stored.scale() * static_cast<double>(stored.rank())));
    load_checkpoint(found.front(), worker.store(), nullptr, saved_parameter);
    notes.push_back(fmt::format("starts from the adapters in {}", found.front().string()));
  });
  if (failure) throw Error(failure->kind, failure->text, failure->hint);
}

std::optional<RunConfig> config_to_resume(const RunConfig& config) {
  const std::vector<fs::path> checkpoints = checkpoints_to_try(config, 0);
  std::vector<std::string> ignored;
  return checkpoints.empty() ? std::nullopt : saved_config(checkpoints.front(), ignored);
}

int64_t likely_next_step(const Communicator& world, const RunConfig& config) {
  int64_t step = 0;
  const std::vector<fs::path> paths = checkpoints_to_try(config, world.rank());
  try {
    if (!paths.empty()) step = read_manifest(paths.front()).step;
  } catch (const Error&) {
    // load_checkpoint says what is wrong with it.
  }
  return from_rank_0(world, step) + 1;
}

}  // namespace cadre
