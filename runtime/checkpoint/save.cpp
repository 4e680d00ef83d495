// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/save.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <cstring>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "comm/job/wait.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSavePhase = "saving a checkpoint";

// What a rank that writes wrote: a file of values and one of moments.
struct Shard {
  FileDigest values;
  FileDigest moments;
};

Account account_of(const Shard& shard) {
  return {.numbers = {shard.values.bytes, shard.values.xxh64, shard.moments.bytes, shard.moments.xxh64}};
}

Shard shard_of(const Account& account) {
  const auto& [bytes, xxh64, moment_bytes, moment_xxh64] = account.numbers;
  return {{bytes, xxh64}, {moment_bytes, moment_xxh64}};
}

std::string shard_file(size_t index, size_t count) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

FileDigest write_tensors(const fs::path& path, const std::vector<NamedTensor>& tensors) {
  std::vector<TensorSource> sources;
  for (const auto& [name, memory] : tensors) {
    if (memory.dtype() != DType::f32 && memory.dtype() != DType::bf16) {
      throw Error(ErrorKind::internal,
                  fmt::format("a checkpoint holds no {}, as {} is", name_of(memory.dtype()), name));
    }
    const std::span<const std::byte> bytes(memory.raw(), memory.bytes());
    sources.push_back({name, memory.dtype(), shape_of(memory), bytes});
  }
  return write_safetensors(path, sources);
}

// Writes the index of the shards in one folder. What is where is read from the files themselves: so this rank sees
// them, and they are whole. Returns the bytes of all tensors.
uint64_t write_index_of(const fs::path& staged, const std::string& folder, size_t num_shards, Manifest& manifest) {
  WeightMap weight_map;
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < num_shards; ++i) {
    const std::string file = shard_file(i, num_shards);
    const SafetensorsReader reader(staged / folder / file);
    for (const TensorEntry& entry : reader.entries()) {
      const auto [other, fresh] = weight_map.emplace(entry.name, file);
      if (!fresh) {
        throw Error(ErrorKind::internal,
                    fmt::format("{} was written to {} and to {}", quote_name(entry.name), other->second, file));
      }
      total_bytes += entry.bytes();
    }
  }
  const std::string index = (fs::path(folder) / kIndexFile).generic_string();
  manifest.files[index] = write_index(staged / folder, weight_map, total_bytes);
  return total_bytes;
}

// Elements in the files of values: the MTP modules come with copies of both vocabulary tables.
int64_t elements_in_files(const ModelConfig& model) {
  const ParameterCount count = count_parameters(model);
  return count.total + count.mtp_modules + 2 * model.num_nextn_predict_layers * count.embedding;
}

// The index and config.json of a whole model.
void describe_model(const fs::path& staged, const CheckpointState& state, const std::vector<Shard>& shards,
                    Manifest& manifest) {
  for (size_t i = 0; i < shards.size(); ++i) manifest.files[shard_file(i, shards.size())] = shards[i].values;
  const uint64_t bytes = write_index_of(staged, "", shards.size(), manifest);
  const auto wanted_bytes = static_cast<uint64_t>(elements_in_files(state.model)) * sizeof(float);
  if (bytes != wanted_bytes) {
    throw Error(ErrorKind::internal,
                fmt::format("the ranks wrote {} bytes of parameters, the whole model has {}", bytes, wanted_bytes));
  }
  manifest.files[kConfigFile] = write_text_file(staged / kConfigFile, to_json(state.model).dump(2) + "\n");
}

// Adapters of all ranks, in one file in place of their shards. PEFT opens no others.
void join_adapters(const fs::path& staged, const CheckpointState& state, size_t num_shards, Manifest& manifest) {
  std::vector<SafetensorsReader> readers;
  std::vector<TensorSource> sources;
  for (size_t i = 0; i < num_shards; ++i) readers.emplace_back(staged / shard_file(i, num_shards));
  for (const SafetensorsReader& reader : readers) {
    for (const TensorEntry& entry : reader.entries()) {
      sources.push_back({entry.name, *entry.dtype, entry.shape, reader.bytes(entry)});
    }
  }
  manifest.files[kAdapterFile] = write_safetensors(staged / kAdapterFile, sources);
  manifest.files[kAdapterConfigFile] = write_text_file(staged / kAdapterConfigFile, state.adapter_config);
  for (size_t i = 0; i < num_shards; ++i) fs::remove(staged / shard_file(i, num_shards));
}

// Everything but the shards, cadre.json last.
void write_descriptions(const fs::path& staged, const CheckpointState& state, const std::vector<Shard>& shards) {
  Manifest manifest = state.manifest;
  for (size_t i = 0; i < shards.size(); ++i) {
    manifest.files[(fs::path(kOptimizerFolder) / shard_file(i, shards.size())).generic_string()] = shards[i].moments;
  }
  if (state.adapter_config.empty()) {
    describe_model(staged, state, shards, manifest);
  } else {
    join_adapters(staged, state, shards.size(), manifest);
  }
  write_index_of(staged, kOptimizerFolder, shards.size(), manifest);
  manifest.files[kRunFile] = write_text_file(staged / kRunFile, state.run_toml);
  for (const auto& [name, content] : state.more_files) {
    fs::create_directories((staged / name).parent_path());
    manifest.files[name] = write_text_file(staged / name, content);
  }
  write_manifest(staged, manifest);
}

// Runs on a detached thread: a call that hangs in a file system must not hang the rank.
std::future<AccountOrError> in_background(std::function<AccountOrError()> work) {
  std::packaged_task<AccountOrError()> task(std::move(work));
  std::future<AccountOrError> result = task.get_future();
  std::thread(std::move(task)).detach();
  return result;
}

std::future<AccountOrError> at_once(const std::function<AccountOrError()>& work) {
  std::promise<AccountOrError> promise;
  promise.set_value(work());
  return promise.get_future();
}

// Moves the tensors into `space`, which grows where it is too small.
void copy_into(Buffer& space, Memory& memory, std::vector<NamedTensor>& values, std::vector<NamedTensor>& moments) {
  const size_t bytes = CheckpointSave::copy_bytes(values) + CheckpointSave::copy_bytes(moments);
  if (space.bytes() < bytes) space = Buffer(bytes);
  std::byte* next = space.data();
  for (std::vector<NamedTensor>* tensors : {&values, &moments}) {
    for (NamedTensor& tensor : *tensors) {
      const Tensor source = tensor.memory;
      memory.read(next, source.raw(), source.bytes());
      tensor.memory = source.with_memory(next, source.dtype());
      next += whole_cache_lines(source.bytes());
    }
  }
}

}  // namespace

struct CheckpointSave::Job {
  fs::path root;
  CheckpointState state;
  KeepRule keep;
  bool is_first;                    // rank 0
  std::vector<NamedTensor> values;  // what this rank writes
  std::vector<NamedTensor> moments;
  std::shared_ptr<Buffer> space;  // of the copy they lie in, where they are written while others go on
  Buffer own_space = {};          // of the copy of what lies on a device
  fs::path staged = {};
  std::string file = {};  // of this rank
  std::vector<Shard> shards = {};

  Account work(Stage stage) {
    switch (stage) {
      case Stage::stage: return make_directory();
      case Stage::write: return write_files();
      case Stage::commit: return commit();
      case Stage::prune: return prune();
      case Stage::discard: return discard();
      case Stage::over: break;
    }
    return {};
  }

  // Tells the others whether this rank writes, and which directory rank 0 made.
  Account make_directory() {
    Account account{.numbers = {values.empty() ? 0U : 1U}};
    if (!is_first) return account;
    staged = stage_checkpoint(root, state.manifest.step);
    fs::create_directory(staged / kOptimizerFolder);
    account.text = staged.string();
    return account;
  }
  Account write_files() {
    if (values.empty()) return {};
    return account_of({write_tensors(staged / file, values), write_tensors(staged / kOptimizerFolder / file, moments)});
  }
  Account commit() {
    if (!is_first) return {};
    write_descriptions(staged, state, shards);
    return {.text = commit_checkpoint(root, state.manifest.step).string()};
  }
  Account prune() {
    if (is_first) prune_checkpoints(root, keep);
    return {};
  }
  Account discard() {
    if (is_first) discard_staged(root);
    return {};
  }
};

CheckpointSave::CheckpointSave(const CheckpointRanks& ranks, const fs::path& root, const CheckpointState& state,
                               const ParameterStore& store, const Optimizer& optimizer, const KeepRule& keep,
                               std::shared_ptr<Buffer> space)
    : ranks_(ranks),
      job_(new Job{root, state, keep, ranks.world.rank() == 0, name_values(store, ranks.writes),
                   name_moments(optimizer, ranks.writes), std::move(space)}) {
  std::ranges::move(name_copies(store, ranks.writes), std::back_inserter(job_->values));
  Memory& memory = store.memory();
  if (job_->space || !memory.is_on_host()) {
    copy_into(job_->space ? *job_->space : job_->own_space, memory, job_->values, job_->moments);
  } else {
    memory.synchronize();
  }
  begin(Stage::stage);
}

size_t CheckpointSave::copy_bytes(const std::vector<NamedTensor>& tensors) {
  size_t bytes = 0;
  for (const NamedTensor& tensor : tensors) bytes += whole_cache_lines(tensor.memory.bytes());
  return bytes;
}

bool CheckpointSave::poll() {
  while (stage_ != Stage::over) {
    if (working_.valid()) {
      if (working_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
      agreement_.emplace(ranks_.world, working_.get());
    }
    if (!agreement_->request().test()) return false;
    next();
  }
  return true;
}

const SaveOutcome& CheckpointSave::finish() {
  while (!poll()) {
    if (!working_.valid()) {
      wait(agreement_->request(), ranks_.deadline_seconds, {.phase = kSavePhase});
    } else if (working_.wait_for(std::chrono::duration<double>(ranks_.deadline_seconds)) != std::future_status::ready) {
      throw Error(ErrorKind::timeout,
                  fmt::format("{}: {} does not come to an end within {:.0f} s", kSavePhase, job_->staged.string(),
                              ranks_.deadline_seconds),
                  "the file system hangs, or is too slow for a checkpoint of this size");
    }
  }
  return outcome_;
}

void CheckpointSave::begin(Stage stage) {
  stage_ = stage;
  const auto work = [stage, job = job_] { return part_of([&] { return job->work(stage); }); };
  working_ = job_->space ? in_background(work) : at_once(work);
}

// Once all ranks have told how the stage went.
void CheckpointSave::next() {
  if (std::optional<Failure> failure = agreement_->failure()) return fail(std::move(failure));
  switch (stage_) {
    case Stage::stage: name_files(); return begin(Stage::write);
    case Stage::write: take_shards(); return begin(Stage::commit);
    case Stage::commit: outcome_.path = agreement_->account_of(0).text; return begin(Stage::prune);
    case Stage::prune:
    case Stage::discard:
    case Stage::over: stage_ = Stage::over; job_.reset();
  }
}

// Of two failures the first counts.
void CheckpointSave::fail(std::optional<Failure> failure) {
  if (!outcome_.failure) outcome_.failure = std::move(failure);
  if (outcome_.path.empty() && stage_ != Stage::discard) return begin(Stage::discard);
  stage_ = Stage::over;
  job_.reset();
}

// Only ranks that write are counted.
void CheckpointSave::name_files() {
  size_t index = 0;
  size_t count = 0;
  for (int rank = 0; rank < ranks_.world.size(); ++rank) {
    if (rank == ranks_.world.rank()) index = count;
    count += agreement_->account_of(rank).numbers[0];
  }
  job_->staged = agreement_->account_of(0).text;
  job_->file = shard_file(index, count);
}

// In the order of their numbers.
void CheckpointSave::take_shards() {
  for (int rank = 0; rank < ranks_.world.size(); ++rank) {
    const Shard shard = shard_of(agreement_->account_of(rank));
    if (shard.values.bytes > 0) job_->shards.push_back(shard);
  }
}

fs::path save_checkpoint(const CheckpointRanks& ranks, const fs::path& root, const CheckpointState& state,
                         const ParameterStore& store, const Optimizer& optimizer, const KeepRule& keep) {
  CheckpointSave save(ranks, root, state, store, optimizer, keep);
  const SaveOutcome& outcome = save.finish();
  if (outcome.failure) throw outcome.failure->error(kSavePhase);
  return outcome.path;
}

}  // namespace cadre
