// SPDX-License-Identifier: Apache-2.0
// The length and checksum by which a checkpoint knows its files again. The checksum is XXH64 with seed 0, so that
// `xxhsum FILE` prints the same 16 digits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH64_state_s;

namespace cadre {

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

}  // namespace cadre
