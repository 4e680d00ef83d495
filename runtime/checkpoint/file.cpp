// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/file.hpp"

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

constexpr size_t kReadBytes = size_t{4} << 20;

void free_state(XXH64_state_t* state) { static_cast<void>(XXH64_freeState(state)); }

}  // namespace

Digester::Digester() : state_(XXH64_createState(), free_state) {
  if (state_ == nullptr) throw Error(ErrorKind::environment, "cannot allocate the state of a checksum");
  static_cast<void>(XXH64_reset(state_.get(), 0));
}

void Digester::append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  static_cast<void>(XXH64_update(state_.get(), bytes.data(), bytes.size()));
  bytes_ += bytes.size();
}

FileDigest Digester::digest() const { return {bytes_, XXH64_digest(state_.get())}; }

FileDigest digest_of(std::string_view bytes) {
  Digester digester;
  digester.append(std::as_bytes(std::span(bytes)));
  return digester.digest();
}

FileDigest digest_file(const std::filesystem::path& path) {
  expect_regular_file(path, "a checkpoint consists of regular files");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  CADRE_CHECK(file.is_open(), fmt::format("cannot open {}: {}", path.string(), std::strerror(errno)));
  std::vector<std::byte> block(kReadBytes);
  Digester digester;
  while (file) {
    file.read(reinterpret_cast<char*>(block.data()), static_cast<std::streamsize>(block.size()));
    digester.append({block.data(), static_cast<size_t>(file.gcount())});
  }
  if (file.bad() || !file.eof()) {
    throw Error(ErrorKind::environment, fmt::format("cannot read {} beyond byte {}: {}", path.string(),
                                                    digester.digest().bytes, std::strerror(errno)));
  }
  return digester.digest();
}

std::string hex(uint64_t checksum) { return fmt::format("{:016x}", checksum); }

namespace {

constexpr size_t kWriteBytes = size_t{16} << 20;
constexpr size_t kMaxJsonBytes = size_t{1} << 30;
constexpr int kMaxJsonDepth = 100;  // copies of a value recurse

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC)) {
    CADRE_CHECK(value_ >= 0, fmt::format("cannot open {}: {}", path.string(), std::strerror(errno)));
  }
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int value() const { return value_; }

 private:
  int value_;
};

std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  expect_regular_file(path, "name a file that is there");
  const Descriptor file(path, O_RDONLY);
  struct stat status {};
  CADRE_CHECK(::fstat(file.value(), &status) == 0,
              fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) return;
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value(), 0);
  if (start == MAP_FAILED) {
    throw Error(ErrorKind::environment,
                fmt::format("cannot map the {} bytes of {}: {}", size, path.string(), std::strerror(errno)),
                "raise the address-space limit (ulimit -v)");
  }
  bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::~MappedFile() { unmap(); }

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    unmap();
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

void MappedFile::unmap() noexcept {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void release_pages(std::span<const std::byte> bytes) noexcept {
  if (bytes.empty()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = begin - begin % page;
  // A failure leaves more memory in use, and nothing else.
  static_cast<void>(::madvise(reinterpret_cast<void*>(first), begin + bytes.size() - first, MADV_DONTNEED));
}

StagedFile::StagedFile(std::filesystem::path path, uint64_t total_bytes)
    : path_(std::move(path)), temporary_(path_.string() + ".tmp"), total_bytes_(total_bytes) {
  std::error_code none;
  const auto target = std::filesystem::status(path_, none);
  CADRE_CHECK(!std::filesystem::exists(target) || std::filesystem::is_regular_file(target),
              fmt::format("cannot write {}: it is there and not a regular file", path_.string()),
              "name a file: it is written beside and then renamed, which a pipe or device does not survive");
  // What a killed run left, or another user put there, is removed, never opened.
  ::unlink(temporary_.c_str());
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("create", errno);
}

StagedFile::~StagedFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void StagedFile::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto block = bytes.first(std::min(bytes.size(), kWriteBytes));
    const ssize_t written = ::write(descriptor_, block.data(), block.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", errno);
    digester_.append(block.first(static_cast<size_t>(written)));
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

FileDigest StagedFile::commit() {
  CADRE_ASSERT(digester_.digest().bytes == total_bytes_);
  if (::fsync(descriptor_) != 0) fail("write", errno);
  // Some file systems report a failed write only here.
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail("write", error);
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail("rename its temporary file to", error);
  }
  sync_path(parent_of(path_));
  return digester_.digest();
}

void StagedFile::fail(std::string_view action, int error) const {
  const bool no_space = error == ENOSPC || error == EDQUOT || error == EFBIG;
  throw Error(ErrorKind::environment,
              fmt::format("cannot {} {}: {} of {} bytes written: {}", action, path_.string(), digester_.digest().bytes,
                          total_bytes_, std::strerror(error)),
              no_space ? "free some space, raise the quota or file-size limit (ulimit -f), or save elsewhere"
                       : "check that the folder exists and that you may write to it");
}

FileDigest write_text_file(const std::filesystem::path& path, std::string_view text) {
  StagedFile file(path, text.size());
  file.append(text);
  return file.commit();
}

nlohmann::json read_json_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  CADRE_CHECK(bytes.size() <= kMaxJsonBytes, fmt::format("{} has {} bytes; a JSON file may have up to {}",
                                                         path.string(), bytes.size(), kMaxJsonBytes));
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, const nlohmann::json&) {
    CADRE_CHECK(depth <= kMaxJsonDepth, fmt::format("{} is nested more than {} deep", path.string(), kMaxJsonDepth),
                "a configuration, an index or a manifest is nested a few deep");
    return true;
  };
  try {
    return nlohmann::json::parse(text, text + bytes.size(), check_depth);
  } catch (const nlohmann::json::exception& error) {  // syntax, or a number that is none
    throw Error(ErrorKind::input, fmt::format("{} is not JSON: {}", path.string(), error.what()),
                "JSON has no NaN, no infinity and no comments");
  }
}

void sync_path(const std::filesystem::path& path) {
  const Descriptor target(path, O_RDONLY);
  // EINVAL: a file system that cannot sync a directory, and needs not.
  if (::fsync(target.value()) != 0 && errno != EINVAL) {
    throw Error(ErrorKind::environment,
                fmt::format("cannot put {} onto the disk: {}", path.string(), std::strerror(errno)));
  }
}

}  // namespace cadre
