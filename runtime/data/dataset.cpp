// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/dataset.hpp"

#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/data/text.hpp"
#include "runtime/data/token_file.hpp"
#include "runtime/data/tokenizer.hpp"

namespace cadre {
namespace {

void check_part(const char* part, int64_t num_tokens, const DataConfig& config) {
  CADRE_CHECK(num_tokens > config.sequence_length,
              fmt::format("data.path = {} has {} tokens for {}, allowed: at least data.sequence_length + 1 = {}",
                          config.path, num_tokens, part, config.sequence_length + 1),
              fmt::format("give more data, shorter sequences, or another data.validation_fraction (now {})",
                          config.validation_fraction));
}

}  // namespace

TokenSource open_tokens(const DataConfig& config, int64_t vocab_size) {
  if (is_token_file(config.path)) return open_token_file(config.path, vocab_size);
  CADRE_CHECK(vocab_size >= kByteVocabSize,
              fmt::format("model.vocab_size = {}, allowed: integer >= 256 with data.tokenizer = \"bytes\"", vocab_size),
              "every byte is a token");
  auto text = std::make_shared<const std::string>(read_text(config.path));
  const auto* ids = reinterpret_cast<const uint8_t*>(text->data());
  const auto num_tokens = static_cast<int64_t>(text->size());
  return {config.path, std::move(text), ids, num_tokens, vocab_size};
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
