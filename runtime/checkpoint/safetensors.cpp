// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "comm/base/check.hpp"

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

}  // namespace cadre
