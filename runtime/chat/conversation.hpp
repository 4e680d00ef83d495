// SPDX-License-Identifier: Apache-2.0
// Conversations, and the JSON Lines files that hold them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

struct Message {
  std::string role;  // system, user or assistant
  std::string content;
  float weight = 1.0F;  // of the loss of its tokens, where it is an answer (role assistant); 0: none

  bool operator==(const Message&) const = default;
};

inline constexpr const char* kAssistant = "assistant";

using Conversation = std::vector<Message>;

// One line of such a file, an object: {"messages": [{"role": .., "content": .., "weight": ..}, ..]}, of which weight is
// optional and only answers have one, or {"prompt": TEXT, "completion": TEXT}, a question and its answer. Other keys are
// not read. Throws on anything else; `where` (file and line) begins the message.
Conversation parse_conversation(std::string_view line, const std::string& where);

// Every line of a file; empty ones are passed over. Throws where it cannot be read, has no conversation, or has one without
// an answer and `need_answers`.
std::vector<Conversation> read_conversations(const std::string& path, bool need_answers);

// How a conversation becomes a text: the chat formats of DeepSeek-V2, V3 and R1, for messages of the roles system, user and
// assistant. They are the texts that transformers' apply_chat_template makes with the templates of these models.

enum class ChatFormat { deepseek_v2, deepseek_v3, deepseek_r1 };

// As data.chat_format names it; throws on other names.
ChatFormat chat_format_named(const std::string& name);
std::string name_of(ChatFormat format);

// A piece of the text. Those that the model writes itself are answers; all others it reads.
struct ChatPart {
  enum class Kind { text, begin, end };  // begin, end: the tokens that begin and end a text
  Kind kind = Kind::text;
  std::string text = {};
  bool is_answer = false;
  float weight = 0.0F;  // of an answer's loss

  bool operator==(const ChatPart&) const = default;
};

// deepseek_r1 leaves thoughts, what stands before </think>, out of answers, as its template does, but for an answer that
// ends the conversation: that one has the form in which the model writes it, thoughts first.
std::vector<ChatPart> whole_conversation(ChatFormat format, const Conversation& conversation);

// What the model reads before it writes the next answer. Throws where the last message is an answer.
std::vector<ChatPart> prompt_of(ChatFormat format, const Conversation& conversation);

// What the model writes before the content of an answer: the space of "Assistant: " in deepseek_v2.
std::string_view before_answer(ChatFormat format);

// The format that these files of a tokenizer ask for: by their chat template, or, without one, by the tokens of the roles.
// Throws where they ask for another or for none; the message names those that there are and `key`, which sets one.
ChatFormat find_chat_format(const TokenizerFiles& files, const Tokenizer& tokenizer, const std::string& key);

}  // namespace cadre
