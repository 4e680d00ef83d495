// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/token_source.hpp"

#include <fmt/format.h>

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

TokenSource::TokenSource(std::string name, std::shared_ptr<const void> owner, Ids ids, int64_t num_tokens,
                         int64_t vocab_size)
    : name_(std::move(name)), owner_(std::move(owner)), ids_(ids), num_tokens_(num_tokens), vocab_size_(vocab_size) {}

void TokenSource::read(int64_t first, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  CADRE_ASSERT(first >= 0 && first + count <= num_tokens_);
  const auto copy = [&](const auto* ids) {
    ids += first_token_ + first;
    for (int64_t i = 0; i < count; ++i) {
      CADRE_CHECK(ids[i] < vocab_size_,
                  fmt::format("{}: token {} has id {}, allowed: [0, model.vocab_size = {})", name_,
                              first_token_ + first + i, ids[i], vocab_size_),
                  "raise model.vocab_size, or use data of the model's own tokenizer");
      out[i] = static_cast<int32_t>(ids[i]);
    }
  };
  std::visit(copy, ids_);
}

TokenSource TokenSource::slice(int64_t first, int64_t count) const {
  CADRE_ASSERT(first >= 0 && count >= 0 && first + count <= num_tokens_);
  TokenSource part = *this;
  part.first_token_ += first;
  part.num_tokens_ = count;
  return part;
}

}  // namespace cadre
