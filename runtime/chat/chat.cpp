// SPDX-License-Identifier: Apache-2.0
#include "runtime/chat/chat.hpp"

#include <fmt/format.h>

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

Chat::Chat(ChatFormat format, std::shared_ptr<const Tokenizer> tokenizer, std::optional<int32_t> begin, int32_t end)
    : format_(format), tokenizer_(std::move(tokenizer)), begin_(begin), end_(end) {}

ChatTokens Chat::encode(std::span<const ChatPart> parts) const {
  ChatTokens tokens;
  const auto add = [&](const std::vector<int32_t>& ids, float weight) {
    tokens.ids.insert(tokens.ids.end(), ids.begin(), ids.end());
    tokens.weights.resize(tokens.ids.size(), weight);
  };
  std::string read;  // text that the model reads, not encoded yet
  const auto add_read = [&] {
    if (!read.empty()) add(tokenizer_->encode(read), 0.0F);
    read.clear();
  };
  for (const ChatPart& part : parts) {
    if (part.kind == ChatPart::Kind::text && !part.is_answer) {
      read += part.text;
      continue;
    }
    add_read();
    if (part.kind == ChatPart::Kind::text) add(tokenizer_->encode(part.text), part.weight);
    if (part.kind == ChatPart::Kind::begin && begin_) add({*begin_}, 0.0F);
    if (part.kind == ChatPart::Kind::end) add({end_}, part.weight);
  }
  add_read();
  return tokens;
}

ChatTokens Chat::encode(const Conversation& conversation) const {
  return encode(whole_conversation(format_, conversation));
}

std::vector<int32_t> Chat::prompt(const Conversation& conversation) const {
  return encode(prompt_of(format_, conversation)).ids;
}

Chat open_chat(const std::string& tokenizer_path, const std::string& format_name, const ModelConfig& model,
               const std::string& key) {
  const TokenizerFiles files = read_tokenizer_files(tokenizer_path);
  std::shared_ptr<const Tokenizer> tokenizer = make_tokenizer(files, tokenizer_path);
  const ChatFormat format =
      format_name == "auto" ? find_chat_format(files, *tokenizer, key) : chat_format_named(format_name);
  const auto of_model = [](int64_t token) {
    return token >= 0 ? std::optional(static_cast<int32_t>(token)) : std::nullopt;
  };
  std::optional<int32_t> begin = tokenizer->begin_of_text();
  if (!begin) begin = of_model(model.bos_token_id);
  std::optional<int32_t> end = tokenizer->end_of_text();
  if (!end) end = of_model(model.eos_token_id);
  CADRE_CHECK(end.has_value(),
              fmt::format("{}: no token ends a text, allowed with conversations: one that does", tokenizer_path),
              "an answer ends with it: set model.eos_token_id, with bytes for example to 0");
  return {format, std::move(tokenizer), begin, *end};
}

}  // namespace cadre
