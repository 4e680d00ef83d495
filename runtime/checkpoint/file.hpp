// SPDX-License-Identifier: Apache-2.0
// Files as a checkpoint needs them: read through a memory map, and written so that a reader, a crash or a full disk
// finds either the old file or the whole new one.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH64_state_s;

namespace cadre {

// The length and checksum by which a checkpoint knows its files again. The checksum is XXH64 with seed 0, so that
// `xxhsum FILE` prints the same 16 digits.
struct FileDigest {
  uint64_t bytes = 0;
  uint64_t xxh64 = 0;

  bool operator==(const FileDigest&) const = default;
};

// Sums up bytes that arrive in pieces.
class Digester {
 public:
  Digester();
  void append(std::span<const std::byte> bytes);
  FileDigest digest() const;

 private:
  std::unique_ptr<XXH64_state_s, void (*)(XXH64_state_s*)> state_;
  uint64_t bytes_ = 0;
};

FileDigest digest_of(std::string_view bytes);

// Reads the whole file. Throws when it cannot be read to its end.
FileDigest digest_file(const std::filesystem::path& path);

// A checksum as 16 hexadecimal digits.
std::string hex(uint64_t checksum);

// The bytes of a regular file, read-only, until the object dies. Nobody may shorten the file meanwhile. Move-only.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  void unmap() noexcept;

  std::span<const std::byte> bytes_;
};

// Of a mapped file: its pages are no longer of this process' resident memory, until somebody reads them again.
void release_pages(std::span<const std::byte> bytes) noexcept;

// Writes `path` by way of a sibling "<path>.tmp". Unless commit() was reached, `path` stays as it was and the temporary
// file is removed. A symbolic link at either name is replaced, never followed. Every failure throws and names the file,
// the bytes wanted and the reason.
class StagedFile {
 public:
  // `total_bytes` is what all appends will add up to.
  StagedFile(std::filesystem::path path, uint64_t total_bytes);
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  void append(std::span<const std::byte> bytes);
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }

  // Onto the disk, under its name, and its name onto the disk too.
  FileDigest commit();

 private:
  [[noreturn]] void fail(std::string_view action, int error) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  uint64_t total_bytes_;
  int descriptor_ = -1;
  Digester digester_;
};

FileDigest write_text_file(const std::filesystem::path& path, std::string_view text);

// Parses a JSON file of at most 1 GiB; the error names the file and the place.
nlohmann::json read_json_file(const std::filesystem::path& path);

// Puts the data of a file, or the names in a directory, onto the disk.
void sync_path(const std::filesystem::path& path);

}  // namespace cadre
