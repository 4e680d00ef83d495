// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/readers.hpp"

#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "layers/model/config.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/data/token_source.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre::fuzz {
namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "the reader is wrong: %s\n", what.c_str());
  std::abort();
}

// A file without a disk behind it, whose content is replaced for each input.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const uint8_t> content) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    if (descriptor_ < 0) fail("no memfd");
    const ssize_t written = ::write(descriptor_, content.data(), content.size());
    if (written != static_cast<ssize_t>(content.size())) fail("a short write to a memfd");
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

template <class Read>
void take_or_refuse(Read&& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string text = error.what();
    if (error.kind() == ErrorKind::internal) fail("an internal error: " + text);
    if (text.empty() || text.find('\n') != std::string::npos) fail("a message that is not one line: " + text);
  }
}

void check_written_header(const SafetensorsReader& reader, uint64_t data_bytes) {
  const SafetensorsHeader header{reader.entries(), reader.metadata()};
  const SafetensorsHeader again = parse_safetensors_header(format_safetensors_header(header), data_bytes, "rewritten");
  const bool same = std::ranges::equal(header.entries, again.entries, [](const TensorEntry& a, const TensorEntry& b) {
    return a.name == b.name && a.dtype_name == b.dtype_name && a.shape == b.shape && a.begin == b.begin &&
           a.end == b.end;
  });
  if (!same || header.metadata != again.metadata) fail("a header changed on its way out and in");
}

}  // namespace

void read_safetensors(std::span<const uint8_t> content) {
  const MemoryFile file(content);
  take_or_refuse([&] {
    const SafetensorsReader reader(std::filesystem::path(file.path()));
    uint64_t data_bytes = 0;
    unsigned sum = 0;
    for (const TensorEntry& entry : reader.entries()) {
      if (reader.find(entry.name) != &entry) fail("a tensor is not found by its name");
      for (const std::byte byte : reader.bytes(entry)) sum += static_cast<unsigned>(byte);
      data_bytes += entry.bytes();
    }
    if (sum > 255U * content.size()) fail("bytes from nowhere");
    check_written_header(reader, data_bytes);
  });
}

void read_config_json(std::span<const uint8_t> content) {
  const MemoryFile file(content);
  take_or_refuse([&] {
    const ModelConfig config = model_config_from_json(read_json_file(file.path()), "config.json");
    const ParameterCount count = count_parameters(config);
    if (count.active > count.total || count.embedding > count.total) fail("counts that cannot be");
    if (flops_per_token(config, config.max_position_embeddings) < 0) fail("a negative number of FLOPs");
    if (!(model_config_from_json(to_json(config), "rewritten") == config))
      fail("a model changed on its way out and in");
  });
}

void read_token_bin(std::span<const uint8_t> content) {
  static constexpr int64_t kVocabulary = 50257;
  const MemoryFile file(content);
  is_token_file(file.path());
  take_or_refuse([&] {
    const TokenSource tokens = open_token_file(file.path(), kVocabulary);
    std::vector<int32_t> ids(static_cast<size_t>(std::min<int64_t>(tokens.num_tokens(), 4096)));
    const auto count = static_cast<int64_t>(ids.size());
    for (const int64_t first : {int64_t{0}, tokens.num_tokens() - count}) {
      tokens.slice(first, count).read(0, ids);
      if (std::ranges::any_of(ids, [](int32_t id) { return id < 0 || id >= kVocabulary; })) fail("a foreign id");
    }
  });
}

void read_tokenizer_json(std::span<const uint8_t> content) {
  static const std::string kSample = "It's 1234567 experts: 专家😀 <|end|>\r\n\n  aaaa\tab\xFF\xE4\xB8";
  take_or_refuse([&] {
    const TokenizerFiles files = {{kTokenizerJsonFile, {content.begin(), content.end()}}};
    const auto tokenizer = make_tokenizer(files, "tokenizer.json");
    for (const std::string_view text : {std::string_view(), std::string_view(kSample)}) {
      const std::vector<int32_t> tokens = tokenizer->encode(text);
      const auto is_foreign = [&](int32_t id) { return id < 0 || id >= tokenizer->vocab_size(); };
      if (std::ranges::any_of(tokens, is_foreign)) fail("a foreign id");
      if (tokens != tokenizer->encode(text)) fail("other tokens of the same text");
      tokenizer->decode(tokens);
    }
  });
}

}  // namespace cadre::fuzz
