// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/model_checkpoint.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <set>

#include "runtime/checkpoint/all_or_none.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/named_tensors.hpp"
#include "runtime/checkpoint/sharded.hpp"
#include "runtime/checkpoint/stored_values.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kRunFile = "run.toml";
constexpr const char* kOptimizerFolder = "optimizer";

// --- saving ---------------------------------------------------------------------------------------------------------

// What a rank that writes wrote: a file of values and one of moments.
struct Shard {
  FileDigest values;
  FileDigest moments;
};

std::string shard_file(size_t index, size_t count) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

// Collective: the name of this rank's files; only ranks that write are counted.
std::string my_shard_file(const Communicator& world, const AllOrNone& together, bool writes) {
  const int32_t mine = writes ? 1 : 0;
  std::vector<int32_t> all(static_cast<size_t>(world.size()));
  together.await(world.all_gather(std::span(&mine, 1), std::span(all)));
  const auto index = std::count(all.begin(), all.begin() + world.rank(), 1);
  const auto count = std::count(all.begin(), all.end(), 1);
  return shard_file(static_cast<size_t>(index), static_cast<size_t>(count));
}

// Collective: all shards in their order. A rank that wrote none gives an empty one.
std::vector<Shard> gather_shards(const Communicator& world, const AllOrNone& together, const Shard& mine) {
  std::vector<Shard> all(static_cast<size_t>(world.size()));
  together.await(world.all_gather(std::span(&mine, 1), std::span(all)));
  std::erase_if(all, [](const Shard& shard) { return shard.values.bytes == 0; });
  return all;
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

// Elements in the files of values: the modules for further tokens come with copies of both vocabulary tables.
int64_t elements_in_files(const ModelConfig& model) {
  const ParameterCount count = count_parameters(model);
  return count.total + count.further_tokens + 2 * model.num_nextn_predict_layers * count.embedding;
}

// Everything but the shards, cadre.json last.
void write_descriptions(const fs::path& staged, const CheckpointState& state, const std::vector<Shard>& shards) {
  Manifest manifest = state.manifest;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shard_file(i, shards.size());
    manifest.files[file] = shards[i].values;
    manifest.files[(fs::path(kOptimizerFolder) / file).generic_string()] = shards[i].moments;
  }
  const uint64_t bytes = write_index_of(staged, "", shards.size(), manifest);
  const auto wanted_bytes = static_cast<uint64_t>(elements_in_files(state.model)) * sizeof(float);
  if (bytes != wanted_bytes) {
    throw Error(ErrorKind::internal,
                fmt::format("the ranks wrote {} bytes of parameters, the whole model has {}", bytes, wanted_bytes));
  }
  write_index_of(staged, kOptimizerFolder, shards.size(), manifest);
  manifest.files[kConfigFile] = write_text_file(staged / kConfigFile, to_json(state.model).dump(2) + "\n");
  manifest.files[kRunFile] = write_text_file(staged / kRunFile, state.run_toml);
  for (const auto& [name, content] : state.more_files) manifest.files[name] = write_text_file(staged / name, content);
  write_manifest(staged, manifest);
}

// --- loading --------------------------------------------------------------------------------------------------------

// Tensors of one folder on their way into memory. The constructor checks all of them, copy() cannot fail.
class TensorLoad {
 public:
  // `folder` is relative to the checkpoint. Without a manifest the files are not verified.
  TensorLoad(const fs::path& checkpoint, const std::string& folder, const Manifest* manifest,
             const std::vector<NamedTensor>& tensors)
      : reader_(checkpoint / folder) {
    if (manifest != nullptr) verify_files(checkpoint, folder, *manifest, tensors);
    for (const auto& [name, memory] : tensors) {
      const StoredValues source(reader_, (checkpoint / folder).string(), name);
      check(checkpoint / folder, source.entry(), memory);
      copies_.push_back({source, memory});
    }
  }

  void copy() const {
    for (const auto& [source, memory] : copies_) {
      memory.dtype() == DType::f32 ? source.read(memory.data<float>()) : copy_rounded(source, memory.data<bf16>());
    }
  }

 private:
  struct Copy {
    StoredValues source;
    Tensor memory;
  };

  // The files that hold the tensors, before they are looked into.
  void verify_files(const fs::path& checkpoint, const std::string& folder, const Manifest& manifest,
                    const std::vector<NamedTensor>& tensors) const {
    std::set<std::string> files;
    for (const NamedTensor& tensor : tensors) {
      for (const std::string& name : {tensor.name, tensor.name + std::string(kScaleSuffix)}) {
        const auto found = reader_.weight_map().find(name);
        if (found != reader_.weight_map().end()) files.insert((fs::path(folder) / found->second).generic_string());
      }
    }
    for (const std::string& file : files) {
      const auto known = manifest.files.find(file);
      CADRE_CHECK(known != manifest.files.end(),
                  fmt::format("{} does not know the file {}", (checkpoint / kManifestFile).string(), file),
                  "files were added to the checkpoint by hand: remove them");
      verify_file(checkpoint, file, known->second, Verify::full);
    }
  }

  void check(const fs::path& directory, const TensorEntry& entry, const Tensor& memory) const {
    const fs::path file = directory / reader_.weight_map().find(entry.name)->second;
    CADRE_CHECK(entry.shape == shape_of(memory),
                fmt::format("{}: tensor {} has shape [{}], expected [{}]", file.string(), quote_name(entry.name),
                            fmt::join(entry.shape, ","), fmt::join(shape_of(memory), ",")),
                "does the configuration describe this model?");
    CADRE_ASSERT(memory.dtype() == DType::f32 || memory.dtype() == DType::bf16);
  }

  // What was bf16 in the file is the same bf16 again.
  static void copy_rounded(const StoredValues& source, bf16* to) {
    std::vector<float> values(source.count());
    source.read(values.data());
    std::ranges::transform(values, to, to_bf16);
  }

  ShardedReader reader_;
  std::vector<Copy> copies_;
};

// The manifest, once all files have their length and those that are small their checksum too.
std::optional<Manifest> read_verified_manifest(const fs::path& directory) {
  if (!fs::exists(directory / kManifestFile)) return std::nullopt;
  Manifest manifest = read_manifest(directory);
  for (const auto& [name, digest] : manifest.files) {
    const bool has_tensors = fs::path(name).extension() == ".safetensors";
    verify_file(directory, name, digest, has_tensors ? Verify::lengths : Verify::full);
  }
  return manifest;
}

}  // namespace

fs::path save_checkpoint(const CheckpointRanks& ranks, const fs::path& root, const CheckpointState& state,
                         const ParameterStore& store, const AdamW& optimizer, size_t keep) {
  const Communicator& world = ranks.world;
  std::vector<NamedTensor> values = name_values(store, ranks.writes);
  std::ranges::move(name_copies(store, ranks.writes), std::back_inserter(values));
  const std::vector<NamedTensor> moments = name_moments(optimizer, ranks.writes);
  const AllOrNone together(world, ranks.deadline_seconds, "saving a checkpoint");
  const std::string file = my_shard_file(world, together, !values.empty());

  fs::path path;
  together.run_on_rank_0([&] {
    path = stage_checkpoint(root, state.manifest.step);
    fs::create_directory(path / kOptimizerFolder);
  });
  path = together.broadcast(path.string(), 0);

  Shard mine;
  together.run([&] {
    if (values.empty()) return;
    mine = {write_tensors(path / file, values), write_tensors(path / kOptimizerFolder / file, moments)};
  });

  const std::vector<Shard> shards = gather_shards(world, together, mine);
  together.run_on_rank_0([&] {
    write_descriptions(path, state, shards);
    path = commit_checkpoint(root, state.manifest.step);
    prune_checkpoints(root, keep);
  });
  return together.broadcast(path.string(), 0);
}

Manifest load_checkpoint(const fs::path& directory, const ParameterStore& store, AdamW* optimizer) {
  CADRE_CHECK(fs::is_directory(directory), fmt::format("{} is not a directory", directory.string()),
              "name the directory of a checkpoint, such as RUN/step_00000100 or RUN/latest");
  const std::optional<Manifest> manifest = read_verified_manifest(directory);
  CADRE_CHECK(manifest || optimizer == nullptr,
              fmt::format("{} has no {}: training cannot go on from it", directory.string(), kManifestFile),
              "only a checkpoint that Cadre wrote holds the state of the optimiser");

  const Manifest* known = manifest ? &*manifest : nullptr;
  const TensorLoad values(directory, "", known, name_values(store, any_parameter));
  std::optional<TensorLoad> moments;
  if (optimizer != nullptr)
    moments.emplace(directory, kOptimizerFolder, known, name_moments(*optimizer, any_parameter));

  values.copy();
  if (moments) moments->copy();
  for (Parameter* parameter : store.parameters()) ++parameter->version;
  return manifest.value_or(Manifest{});
}

ModelConfig read_model_config(const fs::path& path, std::vector<std::string>* unused) {
  const fs::path file = fs::is_directory(path) ? path / kConfigFile : path;
  return model_config_from_json(read_json_file(file), file.string(), unused);
}

}  // namespace cadre
