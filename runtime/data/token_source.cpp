// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/token_source.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {

SharedFile::SharedFile(std::string path)
    : path_(std::move(path)), descriptor_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) {
    throw Error(ErrorKind::environment, fmt::format("{}: cannot open this file: {}", path_, std::strerror(errno)),
                "check that the file is there on every host, and its permissions");
  }
  struct stat status = {};
  if (::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) return;
  ::close(descriptor_);
  throw Error(ErrorKind::input, fmt::format("{}: not a file", path_), "expected a token file that llm.c reads");
}

SharedFile::~SharedFile() { ::close(descriptor_); }

int64_t SharedFile::size() const {
  struct stat status = {};
  CADRE_CHECK(::fstat(descriptor_, &status) == 0, fmt::format("{}: cannot be looked at", path_), "is its disk there?");
  return status.st_size;
}

void SharedFile::read(int64_t first_byte, std::span<std::byte> out) const {
  for (size_t done = 0; done < out.size();) {
    const ssize_t count = ::pread(descriptor_, out.data() + done, out.size() - done,
                                  static_cast<off_t>(first_byte + static_cast<int64_t>(done)));
    if (count < 0 && errno == EINTR) continue;
    const std::string why = count < 0 ? std::strerror(errno) : fmt::format("it has only {} bytes left", size());
    CADRE_CHECK(count > 0,
                fmt::format("{}: cannot read bytes {} to {}: {}", path_, first_byte,
                            first_byte + static_cast<int64_t>(out.size()), why),
                "the file was cut off or lost while the run read it; bring it back, and the same command goes on");
    done += static_cast<size_t>(count);
  }
}

TokenSource::TokenSource(std::string name, std::shared_ptr<const void> owner, Ids ids, int64_t num_tokens,
                         int64_t vocab_size)
    : name_(std::move(name)),
      owner_(std::move(owner)),
      ids_(std::move(ids)),
      num_tokens_(num_tokens),
      vocab_size_(vocab_size) {}

// `ids` are tokens from `first` of the whole on.
template <class Id>
void TokenSource::take(const Id* ids, int64_t first, std::span<int32_t> out) const {
  for (size_t i = 0; i < out.size(); ++i) {
    CADRE_CHECK(ids[i] < vocab_size_,
                fmt::format("{}: token {} has id {}, allowed: [0, model.vocab_size = {})", name_,
                            first + static_cast<int64_t>(i), ids[i], vocab_size_),
                "raise model.vocab_size, or use data of the model's own tokenizer");
    out[i] = static_cast<int32_t>(ids[i]);
  }
}

void TokenSource::read_file(const FileIds& ids, int64_t first, std::span<int32_t> out) const {
  const auto read_as = [&]<class Id>(std::vector<Id> values) {
    values.resize(out.size());
    ids.file->read(ids.first_byte + first * ids.id_bytes, std::as_writable_bytes(std::span(values)));
    take(values.data(), first, out);
  };
  if (ids.id_bytes == sizeof(uint16_t)) return read_as(std::vector<uint16_t>());
  read_as(std::vector<uint32_t>());
}

void TokenSource::read(int64_t first, std::span<int32_t> out) const {
  CADRE_ASSERT(first >= 0 && first + static_cast<int64_t>(out.size()) <= num_tokens_);
  const int64_t in_whole = first_token_ + first;
  if (const auto* file = std::get_if<FileIds>(&ids_)) return read_file(*file, in_whole, out);
  if (const auto* ids = std::get_if<const uint8_t*>(&ids_)) return take(*ids + in_whole, in_whole, out);
  if (const auto* ids = std::get_if<const uint16_t*>(&ids_)) return take(*ids + in_whole, in_whole, out);
  take(std::get<const uint32_t*>(ids_) + in_whole, in_whole, out);
}

uint64_t TokenSource::fingerprint() const {
  constexpr int64_t kBlock = 4096;
  constexpr int64_t kWhole = int64_t{64} << 20;
  constexpr int64_t kPlaces = 1024;
  TokenSource any_id = *this;
  any_id.vocab_size_ = std::numeric_limits<int64_t>::max();
  const std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state(XXH64_createState(), XXH64_freeState);
  XXH64_reset(state.get(), 0);
  XXH64_update(state.get(), &num_tokens_, sizeof num_tokens_);
  std::vector<int32_t> block;
  const auto add = [&](int64_t first) {
    block.resize(static_cast<size_t>(std::min(kBlock, num_tokens_ - first)));
    any_id.read(first, block);
    XXH64_update(state.get(), block.data(), block.size() * sizeof(int32_t));
  };
  if (num_tokens_ <= kWhole) {
    for (int64_t first = 0; first < num_tokens_; first += kBlock) add(first);
  } else {
    for (int64_t place = 0; place < kPlaces; ++place) add((num_tokens_ - kBlock) / (kPlaces - 1) * place);
  }
  return XXH64_digest(state.get());
}

TokenSource TokenSource::slice(int64_t first, int64_t count) const {
  CADRE_ASSERT(first >= 0 && count >= 0 && first + count <= num_tokens_);
  TokenSource part = *this;
  part.first_token_ += first;
  part.num_tokens_ = count;
  return part;
}

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
