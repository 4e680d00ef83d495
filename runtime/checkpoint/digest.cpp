// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/digest.hpp"

#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <fstream>
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

}  // namespace cadre
