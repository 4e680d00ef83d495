// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/sharded.hpp"

#include <nlohmann/json.hpp>

#include <set>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

constexpr const char* kSingleFile = "model.safetensors";

bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos &&
         name.find("..") == std::string::npos;
}

}  // namespace

ShardedReader::ShardedReader(std::filesystem::path directory) : directory_(std::move(directory)) {
  const auto single = directory_ / kSingleFile;
  const auto index = directory_ / kIndexFile;
  if (std::filesystem::exists(single)) {
    for (const TensorEntry& entry : shard(kSingleFile).entries()) weight_map_.emplace(entry.name, kSingleFile);
    return;
  }
  CADRE_CHECK(std::filesystem::exists(index),
              fmt::format("{} holds neither {} nor {}", directory_.string(), kSingleFile, kIndexFile),
              "name the directory that holds config.json and the weights");
  read_index(index);
}

void ShardedReader::read_index(const std::filesystem::path& path) {
  const nlohmann::json index = read_json_file(path);
  const auto weight_map = index.find("weight_map");
  CADRE_CHECK(weight_map != index.end() && weight_map->is_object(),
              fmt::format("{} has no object \"weight_map\"", path.string()));
  std::set<std::string> files;
  for (const auto& [name, file] : weight_map->items()) {
    CADRE_CHECK(file.is_string(),
                fmt::format("{}: weight_map gives no file name for {}", path.string(), quote_name(name)));
    files.insert(weight_map_.emplace(name, file.get<std::string>()).first->second);
  }
  for (const std::string& file : files) {
    CADRE_CHECK(is_plain_file_name(file),
                fmt::format("{}: {} is not the plain name of a file beside it", path.string(), quote_name(file)),
                "paths are refused; do not use an index from a source you do not trust");
    CADRE_CHECK(std::filesystem::exists(directory_ / file),
                fmt::format("{}: the file {} is missing", path.string(), quote_name(file)),
                "fetch or copy every file of the model");
    expect_regular_file(directory_ / file, "fetch or copy every file of the model");
  }
}

const SafetensorsReader& ShardedReader::shard(const std::string& file) {
  const auto mapped = shards_.find(file);
  if (mapped != shards_.end()) return mapped->second;
  SafetensorsReader reader(directory_ / file);
  for (const auto& [name, owner] : weight_map_) {
    CADRE_CHECK(owner != file || reader.find(name) != nullptr,
                fmt::format("{} says that {} holds tensor {}, but it does not", (directory_ / kIndexFile).string(),
                            file, quote_name(name)),
                "the index and the files belong to different models: fetch both again");
  }
  return shards_.emplace(file, std::move(reader)).first->second;
}

std::optional<MappedTensor> ShardedReader::find(std::string_view name) {
  const auto found = weight_map_.find(name);
  if (found == weight_map_.end()) return std::nullopt;
  const SafetensorsReader& reader = shard(found->second);
  const TensorEntry& entry = *reader.find(name);
  return MappedTensor{entry, reader.bytes(entry)};
}

MappedTensor ShardedReader::at(std::string_view name) {
  const auto found = find(name);
  CADRE_CHECK(found.has_value(), fmt::format("{} holds no tensor {}", directory_.string(), quote_name(name)),
              "does its config.json describe these weights?");
  return *found;
}

std::string weights_in(const std::filesystem::path& directory) {
  for (const char* name : {kSingleFile, kIndexFile, "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    std::error_code error;
    if (std::filesystem::exists(directory / name, error)) return name;
  }
  return "";
}

FileDigest write_index(const std::filesystem::path& directory, const WeightMap& weight_map, uint64_t total_bytes) {
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  return write_text_file(directory / kIndexFile, index.dump(2) + "\n");
}

}  // namespace cadre
