// SPDX-License-Identifier: Apache-2.0
#include "runtime/chat/conversation.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"
#include "runtime/tokenizer/json_fields.hpp"

namespace cadre {
namespace {

constexpr const char* kConversationHint =
    R"(a line is {"messages": [{"role": "user", "content": "..."}, ...]} or {"prompt": "...", "completion": "..."})";
constexpr const char* kRoles[] = {"system", "user", kAssistant};

std::string string_at(const nlohmann::json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  CADRE_CHECK(found != object.end() && found->is_string(),
              fmt::format("{}: {} is {}, allowed: a string", where, key,
                          found == object.end() ? "missing" : "a JSON " + std::string(found->type_name())),
              kConversationHint);
  return found->get<std::string>();
}

Message message_of(const nlohmann::json& object, const std::string& where) {
  CADRE_CHECK(object.is_object(), fmt::format("{}: a JSON {}, allowed: an object", where, object.type_name()),
              kConversationHint);
  Message message = {string_at(object, "role", where), string_at(object, "content", where)};
  CADRE_CHECK(std::ranges::find(kRoles, message.role) != std::end(kRoles),
              fmt::format("{}: role = {}, allowed: system | user | assistant", where, cadre::quoted(message.role)),
              "messages of tools are not supported");
  const auto weight = object.find("weight");
  if (weight == object.end() || weight->is_null()) return message;
  const double value = weight->is_number() ? weight->get<double>() : -1.0;
  CADRE_CHECK(value >= 0.0 && std::isfinite(static_cast<float>(value)),
              fmt::format("{}: weight = {}, allowed: number >= 0", where, weight->dump()),
              "it multiplies the loss of an answer");
  CADRE_CHECK(message.role == kAssistant || value == 0.0,
              fmt::format("{}: weight = {} of a message of {}, allowed: 0", where, weight->dump(), message.role),
              "only answers, messages of the role assistant, have a loss");
  message.weight = static_cast<float>(value);
  return message;
}

}  // namespace

Conversation parse_conversation(std::string_view line, const std::string& where) {
  const auto content = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  CADRE_CHECK(content.is_object(), fmt::format("{}: not a JSON object in UTF-8", where), kConversationHint);
  if (!content.contains("messages")) {
    return {{"user", string_at(content, "prompt", where)}, {kAssistant, string_at(content, "completion", where)}};
  }
  const auto& messages = content["messages"];
  CADRE_CHECK(messages.is_array() && !messages.empty(),
              fmt::format("{}: messages is {}, allowed: a list of messages", where,
                          messages.is_array() ? "empty" : "a JSON " + std::string(messages.type_name())),
              kConversationHint);
  Conversation conversation;
  for (const auto& message : messages) {
    conversation.push_back(message_of(message, fmt::format("{}: message {}", where, conversation.size() + 1)));
  }
  return conversation;
}

std::vector<Conversation> read_conversations(const std::string& path, bool need_answers) {
  expect_regular_file(path, kConversationHint);
  std::ifstream file(path, std::ios::binary);
  CADRE_CHECK(file, fmt::format("{}: cannot be read", path), kConversationHint);
  std::vector<Conversation> conversations;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    const std::string where = fmt::format("{}: line {}", path, number);
    conversations.push_back(parse_conversation(line, where));
    CADRE_CHECK(!need_answers ||
                    std::ranges::find(conversations.back(), kAssistant, &Message::role) != conversations.back().end(),
                fmt::format("{}: no message of the role assistant", where), "only answers have a loss");
  }
  CADRE_CHECK(!file.bad(), fmt::format("{}: cannot be read", path), kConversationHint);
  CADRE_CHECK(!conversations.empty(), fmt::format("{}: no conversation in it", path), kConversationHint);
  return conversations;
}

}  // namespace cadre
