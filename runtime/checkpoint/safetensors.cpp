// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/safetensors.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <unordered_set>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is used in place");

constexpr const char* kSafetensorsHint = "the file is damaged or incomplete: fetch or save it again";

uint64_t read_header_bytes(std::span<const std::byte> file, std::string_view name) {
  uint64_t header_bytes = 0;
  CADRE_CHECK(file.size() >= sizeof header_bytes,
              fmt::format("{} has {} bytes; a safetensors file has at least 8", name, file.size()), kSafetensorsHint);
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  CADRE_CHECK(header_bytes <= kMaxHeaderBytes,
              fmt::format("{} claims a header of {} bytes; the limit is {}", name, header_bytes, kMaxHeaderBytes),
              "is it a safetensors file at all?");
  CADRE_CHECK(
      header_bytes <= file.size() - sizeof header_bytes,
      fmt::format("{} claims a header of {} bytes but has only {} bytes in all", name, header_bytes, file.size()),
      kSafetensorsHint);
  return header_bytes;
}

void check_source(const TensorSource& tensor, std::string_view file) {
  const auto fail = [&](std::string_view problem) {
    throw Error(ErrorKind::input,
                fmt::format("cannot write {}: tensor {}: {}", file, quote_name(tensor.name), problem));
  };
  if (!is_utf8(tensor.name)) fail("its name is not UTF-8");
  if (tensor.name == kMetadataKey) fail("this name is reserved");
  uint64_t wanted = size_of(tensor.dtype);
  for (const int64_t extent : tensor.shape) {
    if (extent < 0 || __builtin_mul_overflow(wanted, static_cast<uint64_t>(extent), &wanted)) {
      fail(fmt::format("its shape has the extent {}, which is negative or overflows", extent));
    }
  }
  if (wanted != tensor.bytes.size()) {
    fail(fmt::format("{}[{}] needs {} bytes, {} were given", name_of(tensor.dtype), fmt::join(tensor.shape, ","),
                     wanted, tensor.bytes.size()));
  }
}

std::vector<const TensorSource*> in_file_order(std::span<const TensorSource> tensors) {
  std::vector<const TensorSource*> order;
  for (const TensorSource& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, [](const TensorSource* left, const TensorSource* right) {
    const SafetensorsDType* left_dtype = &safetensors_dtype(left->dtype);
    const SafetensorsDType* right_dtype = &safetensors_dtype(right->dtype);
    return left_dtype != right_dtype ? left_dtype > right_dtype : left->name < right->name;
  });
  return order;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path) : file_(path) {
  const auto file = file_.bytes();
  const uint64_t header_bytes = read_header_bytes(file, path.string());
  const auto text = file.subspan(sizeof header_bytes, header_bytes);
  data_ = file.subspan(sizeof header_bytes + header_bytes);
  header_ =
      parse_safetensors_header({reinterpret_cast<const char*>(text.data()), text.size()}, data_.size(), path.string());
  for (size_t i = 0; i < entries().size(); ++i) index_by_name_.emplace(entries()[i].name, i);
}

const TensorEntry* SafetensorsReader::find(std::string_view name) const {
  const auto found = index_by_name_.find(name);
  return found == index_by_name_.end() ? nullptr : &entries()[found->second];
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const TensorSource> tensors) {
  // Readers of Hugging Face want to know which framework the tensors are for; "pt" is what all of them accept.
  SafetensorsHeader header{.entries = {}, .metadata = {{"format", "pt"}}};
  const auto order = in_file_order(tensors);
  std::unordered_set<std::string_view> names;
  uint64_t offset = 0;
  for (const TensorSource* tensor : order) {
    check_source(*tensor, path.string());
    CADRE_CHECK(names.insert(tensor->name).second,
                fmt::format("cannot write {}: tensor {} is given twice", path.string(), quote_name(tensor->name)));
    const uint64_t end = offset + tensor->bytes.size();
    header.entries.push_back({.name = tensor->name,
                              .dtype_name = safetensors_dtype(tensor->dtype).name,
                              .dtype = tensor->dtype,
                              .shape = tensor->shape,
                              .begin = offset,
                              .end = end});
    offset = end;
  }
  const std::string text = format_safetensors_header(header);
  CADRE_CHECK(text.size() <= kMaxHeaderBytes,
              fmt::format("cannot write {}: its header of {} bytes is over the limit of {}", path.string(), text.size(),
                          kMaxHeaderBytes),
              "spread the tensors over several files");
  const uint64_t header_bytes = text.size();
  StagedFile file(path, sizeof header_bytes + header_bytes + offset);
  file.append(std::as_bytes(std::span(&header_bytes, 1)));
  file.append(text);
  for (const TensorSource* tensor : order) file.append(tensor->bytes);
  return file.commit();
}

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
  if (!std::filesystem::exists(index) && std::filesystem::exists(directory_ / kAdapterFile)) {
    for (const TensorEntry& entry : shard(kAdapterFile).entries()) weight_map_.emplace(entry.name, kAdapterFile);
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
