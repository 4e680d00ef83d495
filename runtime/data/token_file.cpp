// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/token_file.hpp"

#include <boost/interprocess/file_mapping.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <memory>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

namespace ipc = boost::interprocess;

static_assert(std::endian::native == std::endian::little, "token files are mapped as they are");

struct Format {
  int32_t magic;
  int32_t version;
  int64_t id_bytes;
};
constexpr std::array<Format, 2> kFormats = {{{20240520, 1, 2}, {20240801, 7, 4}}};
constexpr size_t kHeaderBytes = 256 * sizeof(int32_t);

struct Header {
  int32_t magic = 0;
  int32_t version = 0;
  int32_t num_tokens = 0;
};

const Format* find_format(int32_t magic) {
  const auto* format = std::ranges::find(kFormats, magic, &Format::magic);
  return format == kFormats.end() ? nullptr : format;
}

std::shared_ptr<const ipc::mapped_region> map_file(const std::string& path) {
  try {
    const ipc::file_mapping file(path.c_str(), ipc::read_only);
    return std::make_shared<const ipc::mapped_region>(file, ipc::read_only);
  } catch (const ipc::interprocess_exception& error) {
    throw Error(ErrorKind::environment, fmt::format("{}: cannot map this file: {}", path, error.what()),
                "check that the file is there on every host, and its permissions");
  }
}

// The format that the header announces, when all of the file agrees with it.
Format check_header(const Header& header, int64_t file_bytes, const std::string& path) {
  const Format* format = find_format(header.magic);
  CADRE_CHECK(format, fmt::format("{}: magic = {}, allowed: 20240520 or 20240801", path, header.magic),
              "expected a token file that llm.c reads");
  CADRE_CHECK(
      header.version == format->version,
      fmt::format("{}: version = {}, allowed: {} with magic {}", path, header.version, format->version, format->magic),
      "expected a token file that llm.c reads");
  CADRE_CHECK(header.num_tokens >= 1,
              fmt::format("{}: number of tokens = {}, allowed: integer >= 1", path, header.num_tokens),
              "the file is empty or its header is damaged");
  const int64_t expected_bytes = static_cast<int64_t>(kHeaderBytes) + header.num_tokens * format->id_bytes;
  CADRE_CHECK(file_bytes == expected_bytes,
              fmt::format("{}: {} bytes, allowed: {} for the {} tokens of its header", path, file_bytes, expected_bytes,
                          header.num_tokens),
              "the file was cut off or written to; write it again");
  return *format;
}

}  // namespace

bool is_token_file(const std::string& path) {
  int32_t magic = 0;
  std::ifstream file(path, std::ios::binary);
  return file.read(reinterpret_cast<char*>(&magic), sizeof(magic)) && find_format(magic);
}

TokenSource open_token_file(const std::string& path, int64_t vocab_size) {
  auto region = map_file(path);
  CADRE_CHECK(region->get_size() >= kHeaderBytes,
              fmt::format("{}: {} bytes, allowed: at least the {} of a header", path, region->get_size(), kHeaderBytes),
              "expected a token file that llm.c reads");
  Header header;
  std::memcpy(&header, region->get_address(), sizeof(header));
  const Format format = check_header(header, static_cast<int64_t>(region->get_size()), path);

  const auto* body = static_cast<const std::byte*>(region->get_address()) + kHeaderBytes;
  TokenSource::Ids ids = reinterpret_cast<const uint32_t*>(body);
  if (format.id_bytes == sizeof(uint16_t)) ids = reinterpret_cast<const uint16_t*>(body);
  return {path, std::move(region), ids, header.num_tokens, vocab_size};
}

}  // namespace cadre
