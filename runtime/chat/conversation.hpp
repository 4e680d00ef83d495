// SPDX-License-Identifier: Apache-2.0
// Conversations, and the JSON Lines files that hold them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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

}  // namespace cadre
