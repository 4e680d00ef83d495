// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/model_checkpoint.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "comm/transport/wait.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/sharded.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kRunFile = "run.toml";
constexpr const char* kOptimizerFolder = "optimizer";

// --- names ----------------------------------------------------------------------------------------------------------

// A tensor of a file and the memory that it is written from or read into, f32.
struct NamedTensor {
  std::string name;
  Tensor memory;
};

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int axis = 0; axis < tensor.num_dims(); ++axis) shape.push_back(tensor.dim(axis));
  return shape;
}

// `whole` has the shape of the parameter; each of its parts has a name of its own.
void append_parts(const Parameter& parameter, const Tensor& whole, std::string_view suffix,
                  std::vector<NamedTensor>& tensors) {
  for (const ParameterPart& part : parameter.parts) {
    tensors.push_back({fmt::format("{}{}", part.name, suffix), whole.rows(part.first_row, part.num_rows)});
  }
}

using Choice = std::function<bool(const Parameter&)>;

std::vector<NamedTensor> values_of(const ParameterStore& store, const Choice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : store.parameters()) {
    if (chosen(*parameter)) append_parts(*parameter, parameter->value, "", tensors);
  }
  return tensors;
}

std::vector<NamedTensor> moments_of(const AdamW& optimizer, const Choice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const AdamW::Moments& moments : optimizer.moments()) {
    if (!chosen(*moments.parameter)) continue;
    append_parts(*moments.parameter, moments.first, ".exp_avg", tensors);
    append_parts(*moments.parameter, moments.second, ".exp_avg_sq", tensors);
  }
  return tensors;
}

bool any_parameter(const Parameter& /*parameter*/) { return true; }

// --- saving ---------------------------------------------------------------------------------------------------------

void await(const CheckpointRanks& ranks, Request request) {
  wait(request, ranks.deadline_seconds, {.phase = "saving a checkpoint"});
}

// Collective: the text of rank `root`.
std::string broadcast_text(const CheckpointRanks& ranks, std::string text, int root) {
  auto length = static_cast<int64_t>(text.size());
  await(ranks, ranks.world.broadcast(std::span(&length, 1), root));
  text.resize(static_cast<size_t>(length));
  await(ranks, ranks.world.broadcast(std::span(text), root));
  return text;
}

std::optional<Error> error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorKind::environment, error.what());
  }
  return std::nullopt;
}

// Collective. When `action` throws on any rank, all ranks throw: that one its own error, the others one that names it.
void all_or_none(const CheckpointRanks& ranks, const std::function<void()>& action) {
  const int rank = ranks.world.rank();
  std::optional<Error> error = error_of(action);
  int32_t first_failed = error ? rank : ranks.world.size();
  await(ranks, ranks.world.all_reduce(std::span(&first_failed, 1), ReduceOp::min));
  if (first_failed == ranks.world.size()) return;
  const std::string text = broadcast_text(ranks, error ? error->text() : "", first_failed);
  if (!error) {
    error.emplace(ErrorKind::environment, fmt::format("rank {} failed to save the checkpoint: {}", first_failed, text),
                  fmt::format("see the message of rank {}; the checkpoint before this one stands", first_failed));
  }
  error->rank = rank;
  throw *error;
}

void on_rank_0(const CheckpointRanks& ranks, const std::function<void()>& action) {
  all_or_none(ranks, [&] {
    if (ranks.world.rank() == 0) action();
  });
}

// What this rank, or a rank, wrote: one file in each folder.
struct Shard {
  FileDigest values;
  FileDigest moments;
};

// The ranks that write, counted from 0: which of them this rank is, and how many there are.
struct ShardNumber {
  bool writes;
  size_t index;
  size_t count;
};

std::string shard_file(size_t index, size_t count) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

// Collective.
ShardNumber number_shards(const CheckpointRanks& ranks, bool writes) {
  const int32_t mine = writes ? 1 : 0;
  std::vector<int32_t> all(static_cast<size_t>(ranks.world.size()));
  await(ranks, ranks.world.all_gather(std::span(&mine, 1), std::span(all)));
  const auto my_place = all.begin() + ranks.world.rank();
  return {writes, static_cast<size_t>(std::count(all.begin(), my_place, 1)),
          static_cast<size_t>(std::count(all.begin(), all.end(), 1))};
}

// Collective: what each shard was written with, in order of shards.
std::vector<Shard> gather_shards(const CheckpointRanks& ranks, const Shard& mine) {
  std::vector<Shard> all(static_cast<size_t>(ranks.world.size()));
  await(ranks, ranks.world.all_gather(std::span(&mine, 1), std::span(all)));
  std::erase_if(all, [](const Shard& shard) { return shard.values.bytes == 0; });
  return all;
}

FileDigest write_tensors(const fs::path& path, const std::vector<NamedTensor>& tensors) {
  std::vector<TensorSource> sources;
  for (const auto& [name, memory] : tensors) {
    const std::span<const float> elements(memory.data<float>(), static_cast<size_t>(memory.numel()));
    sources.push_back({name, DType::f32, shape_of(memory), std::as_bytes(elements)});
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

// Everything but the shards, cadre.json last.
void write_descriptions(const fs::path& staged, const CheckpointState& state, const std::vector<Shard>& shards) {
  Manifest manifest = state.manifest;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shard_file(i, shards.size());
    manifest.files[file] = shards[i].values;
    manifest.files[(fs::path(kOptimizerFolder) / file).generic_string()] = shards[i].moments;
  }
  const uint64_t bytes = write_index_of(staged, "", shards.size(), manifest);
  const auto wanted_bytes = static_cast<uint64_t>(count_parameters(state.model).total) * sizeof(float);
  if (bytes != wanted_bytes) {
    throw Error(ErrorKind::internal, fmt::format("the ranks wrote {} bytes of parameters, the whole model has {}",
                                                 bytes, wanted_bytes));
  }
  write_index_of(staged, kOptimizerFolder, shards.size(), manifest);
  manifest.files[kConfigFile] = write_text_file(staged / kConfigFile, to_json(state.model).dump(2) + "\n");
  manifest.files[kRunFile] = write_text_file(staged / kRunFile, state.run_toml);
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
      const MappedTensor source = reader_.at(name);
      check(checkpoint / folder, source.entry, memory);
      copies_.push_back({source, memory});
    }
  }

  void copy() const {
    for (const auto& [source, memory] : copies_) {
      source.entry.dtype == DType::f32 ? copy_f32(source.bytes, memory) : copy_bf16(source.bytes, memory);
    }
  }

 private:
  struct Copy {
    MappedTensor source;
    Tensor memory;
  };

  // The files that hold the tensors, before they are looked into.
  void verify_files(const fs::path& checkpoint, const std::string& folder, const Manifest& manifest,
                    const std::vector<NamedTensor>& tensors) const {
    std::set<std::string> files;
    for (const NamedTensor& tensor : tensors) {
      const auto found = reader_.weight_map().find(tensor.name);
      if (found != reader_.weight_map().end()) files.insert((fs::path(folder) / found->second).generic_string());
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
    CADRE_CHECK(entry.dtype == DType::f32 || entry.dtype == DType::bf16,
                fmt::format("{}: tensor {} has elements {}, expected F32 or BF16", file.string(),
                            quote_name(entry.name), entry.dtype_name),
                "convert the weights first");
    CADRE_CHECK(entry.shape == shape_of(memory),
                fmt::format("{}: tensor {} has shape [{}], expected [{}]", file.string(), quote_name(entry.name),
                            fmt::join(entry.shape, ","), fmt::join(shape_of(memory), ",")),
                "does the configuration describe this model?");
    CADRE_ASSERT(memory.dtype() == DType::f32);
  }

  static void copy_f32(std::span<const std::byte> from, const Tensor& memory) {
    if (!from.empty()) std::memcpy(memory.data<float>(), from.data(), from.size());
  }

  static void copy_bf16(std::span<const std::byte> from, const Tensor& memory) {
    auto* to = memory.data<float>();
    for (size_t i = 0; i < from.size() / sizeof(bf16); ++i) {
      bf16 element;
      std::memcpy(&element, &from[i * sizeof element], sizeof element);
      to[i] = to_float(element);
    }
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
  const bool is_rank_0 = ranks.world.rank() == 0;
  const Choice is_mine = [&](const Parameter& parameter) {
    return parameter.placement == Placement::expert ? ranks.writes_experts : is_rank_0;
  };
  const std::vector<NamedTensor> values = values_of(store, is_mine);
  const std::vector<NamedTensor> moments = moments_of(optimizer, is_mine);
  const ShardNumber number = number_shards(ranks, !values.empty());

  fs::path path;
  on_rank_0(ranks, [&] {
    path = stage_checkpoint(root, state.manifest.step);
    fs::create_directory(path / kOptimizerFolder);
  });
  path = broadcast_text(ranks, path.string(), 0);

  Shard mine;
  all_or_none(ranks, [&] {
    if (!number.writes) return;
    const std::string file = shard_file(number.index, number.count);
    mine = {write_tensors(path / file, values), write_tensors(path / kOptimizerFolder / file, moments)};
  });

  const std::vector<Shard> shards = gather_shards(ranks, mine);
  on_rank_0(ranks, [&] {
    write_descriptions(path, state, shards);
    path = commit_checkpoint(root, state.manifest.step);
    prune_checkpoints(root, keep);
  });
  return broadcast_text(ranks, path.string(), 0);
}

Manifest load_checkpoint(const fs::path& directory, const ParameterStore& store, AdamW* optimizer) {
  CADRE_CHECK(fs::is_directory(directory), fmt::format("{} is not a directory", directory.string()),
              "name the directory of a checkpoint, such as RUN/step_00000100 or RUN/latest");
  const std::optional<Manifest> manifest = read_verified_manifest(directory);
  CADRE_CHECK(manifest || optimizer == nullptr,
              fmt::format("{} has no {}: training cannot go on from it", directory.string(), kManifestFile),
              "only a checkpoint that Cadre wrote holds the state of the optimiser");

  const Manifest* known = manifest ? &*manifest : nullptr;
  const TensorLoad values(directory, "", known, values_of(store, any_parameter));
  std::optional<TensorLoad> moments;
  if (optimizer != nullptr) moments.emplace(directory, kOptimizerFolder, known, moments_of(*optimizer, any_parameter));

  values.copy();
  if (moments) moments->copy();
  for (Parameter* parameter : store.parameters()) ++parameter->version;
  return manifest.value_or(Manifest{});
}

ModelConfig read_model_config(const fs::path& path) {
  const fs::path file = fs::is_directory(path) ? path / kConfigFile : path;
  return model_config_from_json(read_json_file(file), file.string());
}

}  // namespace cadre
