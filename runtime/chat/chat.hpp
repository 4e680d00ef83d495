// SPDX-License-Identifier: Apache-2.0
// Conversations to tokens, with one tokenizer and one chat format.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layers/model/config.hpp"
#include "runtime/chat/conversation.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

// Tokens of a conversation, and of each the weight of its loss: 0 where it is no part of an answer.
struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class Chat {
 public:
  // `begin`, if any, begins each conversation, `end` ends each answer.
  Chat(ChatFormat format, std::shared_ptr<const Tokenizer> tokenizer, std::optional<int32_t> begin, int32_t end);

  ChatFormat format() const { return format_; }
  int32_t end_token() const { return end_; }

  // The pieces that a model reads and those that it writes are encoded apart, so that training sees the tokens that
  // generation does.
  ChatTokens encode(const Conversation& conversation) const;
  // What the model reads before the next answer.
  std::vector<int32_t> prompt(const Conversation& conversation) const;

 private:
  ChatTokens encode(std::span<const ChatPart> parts) const;

  ChatFormat format_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::optional<int32_t> begin_;
  int32_t end_;
};

// `format` as data.chat_format has it; `key` is what messages call it. Begin and end are the tokens that the tokenizer names, or else the
// model. Throws where no token ends an answer and where the format is auto and cannot be found.
Chat open_chat(const std::string& tokenizer, const std::string& format, const ModelConfig& model,
               const std::string& key);

}  // namespace cadre
