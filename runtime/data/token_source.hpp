// SPDX-License-Identifier: Apache-2.0
// A long run of token ids, stored in one, two or four bytes each, read as int32.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

namespace cadre {

// A file that is read at places, open as long as somebody shares it. Removing or replacing it changes nothing; what is cut
// off is an error of the read that wants it.
class SharedFile {
 public:
  // Throws on what is no regular file or cannot be opened.
  explicit SharedFile(std::string path);
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  int64_t size() const;
  void read(int64_t first_byte, std::span<std::byte> out) const;

 private:
  std::string path_;
  int descriptor_;
};

// Ids of a file from a byte on.
struct FileIds {
  std::shared_ptr<const SharedFile> file;
  int64_t first_byte = 0;
  int64_t id_bytes = 0;  // 2 or 4
};

// A cheap, copyable view that shares what owns its memory (a text) or its file. Ids are checked when they are read, so
// opening a large file costs nothing.
class TokenSource {
 public:
  using Ids = std::variant<const uint8_t*, const uint16_t*, const uint32_t*, FileIds>;

  // `name` stands in messages. `owner` keeps what `ids` point to.
  TokenSource(std::string name, std::shared_ptr<const void> owner, Ids ids, int64_t num_tokens, int64_t vocab_size);

  int64_t num_tokens() const { return num_tokens_; }
  const std::string& name() const { return name_; }

  // Copies tokens [first, first + out.size()). An id outside [0, vocab_size) throws, and a file that lacks them.
  void read(int64_t first, std::span<int32_t> out) const;

  // XXH64 of the number of tokens and of the ids as 32-bit numbers: all of them, or, of more than 64 Mi, 4,096 at each of
  // 1,024 places. The same for data that is stored otherwise.
  uint64_t fingerprint() const;

  TokenSource slice(int64_t first, int64_t count) const;

 private:
  template <class Id>
  void take(const Id* ids, int64_t first, std::span<int32_t> out) const;
  void read_file(const FileIds& ids, int64_t first, std::span<int32_t> out) const;

  std::string name_;
  std::shared_ptr<const void> owner_;
  Ids ids_;
  int64_t first_token_ = 0;  // of this slice, in the whole
  int64_t num_tokens_;
  int64_t vocab_size_;
};

// Token files of llm.c: 256 int32 (magic, version, number of tokens, zeros), then the ids. Magic 20240520 with version
// 1 holds uint16 ids (GPT-2), magic 20240801 with version 7 uint32 ids (Llama 3). Little-endian.

// Whether the first four bytes are one of the two magics.
bool is_token_file(const std::string& path);

// Keeps the file open; tokens are read when they are wanted. A wrong header, or a size that is not exactly what the header
// says, throws.
TokenSource open_token_file(const std::string& path, int64_t vocab_size);

}  // namespace cadre
