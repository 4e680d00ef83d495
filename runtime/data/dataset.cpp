// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/dataset.hpp"

#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/data/text.hpp"
#include "runtime/data/token_file.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/open.hpp"

namespace cadre {
namespace {

void check_part(const char* part, int64_t num_tokens, const DataConfig& config) {
  CADRE_CHECK(num_tokens > config.sequence_length,
              fmt::format("data.path = {} has {} tokens for {}, allowed: at least data.sequence_length + 1 = {}",
                          config.path, num_tokens, part, config.sequence_length + 1),
              fmt::format("give more data, shorter sequences, or another data.validation_fraction (now {})",
                          config.validation_fraction));
}

// A byte is its own id.
TokenSource tokens_of_bytes(const std::string& name, std::string text, int64_t vocab_size) {
  auto owner = std::make_shared<const std::string>(std::move(text));
  const auto* ids = reinterpret_cast<const uint8_t*>(owner->data());
  const auto num_tokens = static_cast<int64_t>(owner->size());
  return {name, std::move(owner), ids, num_tokens, vocab_size};
}

TokenSource tokens_of_text(const std::string& name, const std::string& text, const Tokenizer& tokenizer,
                           int64_t vocab_size) {
  const std::vector<int32_t> tokens = tokenizer.encode(text);
  auto owner = std::make_shared<const std::vector<uint32_t>>(tokens.begin(), tokens.end());
  const uint32_t* ids = owner->data();
  return {name, std::move(owner), ids, static_cast<int64_t>(tokens.size()), vocab_size};
}

}  // namespace

TokenSource open_tokens(const DataConfig& config, int64_t vocab_size) {
  const bool is_bytes = config.tokenizer == kByteTokenizer;
  const bool is_ready = is_token_file(config.path);
  if (is_ready && is_bytes) return open_token_file(config.path, vocab_size);
  const auto tokenizer = open_tokenizer(config.tokenizer);
  CADRE_CHECK(vocab_size >= tokenizer->vocab_size(),
              fmt::format("model.vocab_size = {}, allowed: integer >= {} with data.tokenizer = \"{}\"", vocab_size,
                          tokenizer->vocab_size(), config.tokenizer),
              is_bytes ? "every byte is a token" : "each of its tokens needs a row of the embedding");
  if (is_ready) return open_token_file(config.path, vocab_size);
  std::string text = read_text(config.path);
  if (is_bytes) return tokens_of_bytes(config.path, std::move(text), vocab_size);
  return tokens_of_text(config.path, text, *tokenizer, vocab_size);
}

Dataset open_dataset(const DataConfig& config, int64_t vocab_size) {
  const TokenSource all = open_tokens(config, vocab_size);
  const auto num_validation = static_cast<int64_t>(config.validation_fraction * static_cast<double>(all.num_tokens()));
  const int64_t num_train = all.num_tokens() - num_validation;
  check_part("training", num_train, config);
  if (config.validation_fraction > 0) check_part("validation", num_validation, config);
  return {all.slice(0, num_train), all.slice(num_train, num_validation)};
}

}  // namespace cadre
