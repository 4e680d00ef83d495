// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/token_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

static_assert(std::endian::native == std::endian::little, "ids of token files are taken as they are");

struct Format {
  int32_t magic;
  int32_t version;
  int64_t id_bytes;
};
constexpr std::array<Format, 2> kFormats = {{{20240520, 1, 2}, {20240801, 7, 4}}};
constexpr int64_t kHeaderBytes = 256 * sizeof(int32_t);

struct Header {
  int32_t magic = 0;
  int32_t version = 0;
  int32_t num_tokens = 0;
};

const Format* find_format(int32_t magic) {
  const auto* format = std::ranges::find(kFormats, magic, &Format::magic);
  return format == kFormats.end() ? nullptr : format;
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
  const int64_t expected_bytes = kHeaderBytes + header.num_tokens * format->id_bytes;
  CADRE_CHECK(file_bytes == expected_bytes,
              fmt::format("{}: {} bytes, allowed: {} for the {} tokens of its header", path, file_bytes, expected_bytes,
                          header.num_tokens),
              "the file was cut off or written to; write it again");
  return *format;
}

}  // namespace

bool is_token_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;  // a FIFO would wait for a writer
  int32_t magic = 0;
  std::ifstream file(path, std::ios::binary);
  return file.read(reinterpret_cast<char*>(&magic), sizeof(magic)) && find_format(magic);
}

TokenSource open_token_file(const std::string& path, int64_t vocab_size) {
  const auto file = std::make_shared<const SharedFile>(path);
  const int64_t file_bytes = file->size();
  CADRE_CHECK(file_bytes >= kHeaderBytes,
              fmt::format("{}: {} bytes, allowed: at least the {} of a header", path, file_bytes, kHeaderBytes),
              "expected a token file that llm.c reads");
  Header header;
  file->read(0, std::as_writable_bytes(std::span(&header, 1)));
  const Format format = check_header(header, file_bytes, path);
  return {path, nullptr, FileIds{file, kHeaderBytes, format.id_bytes}, header.num_tokens, vocab_size};
}

}  // namespace cadre
