// SPDX-License-Identifier: Apache-2.0
#include "runtime/chat/conversation.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

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

constexpr const char* kUserToken = "<｜User｜>";
constexpr const char* kAssistantToken = "<｜Assistant｜>";
constexpr const char* kThinkBegin = "<think>\n";
constexpr const char* kThinkEnd = "</think>";
constexpr const char* kFormats = "deepseek_v2 | deepseek_v3 | deepseek_r1";

constexpr std::pair<const char*, ChatFormat> kNames[] = {{"deepseek_v2", ChatFormat::deepseek_v2},
                                                         {"deepseek_v3", ChatFormat::deepseek_v3},
                                                         {"deepseek_r1", ChatFormat::deepseek_r1}};

ChatPart text_part(std::string text) { return {.text = std::move(text)}; }

void add_answer(std::string text, float weight, std::vector<ChatPart>& parts) {
  parts.push_back({ChatPart::Kind::text, std::move(text), true, weight});
  parts.push_back({ChatPart::Kind::end, "", true, weight});
}

bool has_thoughts(const std::string& content) { return content.find(kThinkEnd) != std::string::npos; }

std::string without_thoughts(const std::string& content) {
  const size_t end = content.rfind(kThinkEnd);
  return end == std::string::npos ? content : content.substr(end + std::string_view(kThinkEnd).size());
}

// With the beginning that generation writes for the model.
std::string behind_think(const std::string& content) {
  for (const std::string_view begin : {std::string_view(kThinkBegin), std::string_view("<think>")}) {
    if (content.starts_with(begin)) return content.substr(begin.size());
  }
  return content;
}

std::vector<ChatPart> v2_parts(const Conversation& conversation) {
  std::vector<ChatPart> parts = {{.kind = ChatPart::Kind::begin}};
  for (const Message& message : conversation) {
    if (message.role == kAssistant) {
      parts.push_back(text_part("Assistant:"));
      add_answer(std::string(before_answer(ChatFormat::deepseek_v2)) + message.content, message.weight, parts);
    } else {
      parts.push_back(text_part((message.role == "user" ? "User: " : "") + message.content + "\n\n"));
    }
  }
  return parts;
}

// All system messages stand first.
std::vector<ChatPart> v3_parts(const Conversation& conversation, bool leaves_thoughts_out) {
  std::string system;
  const char* between = "";
  for (const Message& message : conversation) {
    if (message.role == "system") system += std::exchange(between, "\n\n") + message.content;
  }
  std::vector<ChatPart> parts = {{.kind = ChatPart::Kind::begin}, text_part(system)};
  for (size_t i = 0; i < conversation.size(); ++i) {
    const Message& message = conversation[i];
    if (message.role == "user") parts.push_back(text_part(kUserToken + message.content));
    if (message.role != kAssistant) continue;
    const bool is_last = i + 1 == conversation.size();
    const bool thinks = leaves_thoughts_out && is_last && has_thoughts(message.content);
    parts.push_back(text_part(std::string(kAssistantToken) + (thinks ? kThinkBegin : "")));
    const std::string& content = message.content;
    add_answer(thinks                ? behind_think(content)
               : leaves_thoughts_out ? without_thoughts(content)
                                     : content,
               message.weight, parts);
  }
  return parts;
}

bool holds(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// What tells the templates apart. Later templates of DeepSeek choose with a variable `thinking` and are none of these.
std::optional<ChatFormat> format_of_template(std::string_view text) {
  const bool has_roles = holds(text, kUserToken) && holds(text, kAssistantToken);
  if (has_roles && !holds(text, "think")) return ChatFormat::deepseek_v3;
  if (has_roles && holds(text, "<｜Assistant｜><think>\\n") && holds(text, "split('</think>')[-1]") &&
      !holds(text, "thinking")) {
    return ChatFormat::deepseek_r1;
  }
  const bool is_v2 = holds(text, "'User: '") && holds(text, "'Assistant: '") && holds(text, "'Assistant:'");
  return is_v2 && !has_roles ? std::optional(ChatFormat::deepseek_v2) : std::nullopt;
}

// The template of a tokenizer, of several the one named default; "" without one.
std::string chat_template_of(const TokenizerFiles& files) {
  if (const auto file = files.find("chat_template.jinja"); file != files.end()) return file->second;
  const auto file = files.find(kTokenizerConfigFile);
  if (file == files.end()) return "";
  const auto config = nlohmann::json::parse(file->second, nullptr, /*allow_exceptions=*/false);
  const auto value = config.is_object() ? config.value("chat_template", nlohmann::json()) : nlohmann::json();
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const auto& one : value) {
    if (one.is_object() && one.value("name", nlohmann::json()) == "default" && one.contains("template") &&
        one["template"].is_string()) {
      return one["template"].get<std::string>();
    }
  }
  return "";
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

ChatFormat chat_format_named(const std::string& name) {
  for (const auto& [text, format] : kNames) {
    if (name == text) return format;
  }
  throw Error(ErrorKind::input, fmt::format("chat format {}, allowed: {}", name, kFormats),
              "name one of them, or auto");
}

std::string name_of(ChatFormat format) { return kNames[static_cast<size_t>(format)].first; }

std::vector<ChatPart> whole_conversation(ChatFormat format, const Conversation& conversation) {
  if (format == ChatFormat::deepseek_v2) return v2_parts(conversation);
  return v3_parts(conversation, format == ChatFormat::deepseek_r1);
}

std::vector<ChatPart> prompt_of(ChatFormat format, const Conversation& conversation) {
  CADRE_CHECK(!conversation.empty() && conversation.back().role != kAssistant,
              "the last message is an answer already, allowed: one of the role user or system",
              "end the conversation with a question");
  std::vector<ChatPart> parts = whole_conversation(format, conversation);
  switch (format) {
    case ChatFormat::deepseek_v2: parts.push_back(text_part("Assistant:")); break;
    case ChatFormat::deepseek_v3: parts.push_back(text_part(kAssistantToken)); break;
    case ChatFormat::deepseek_r1: parts.push_back(text_part(std::string(kAssistantToken) + kThinkBegin)); break;
  }
  return parts;
}

std::string_view before_answer(ChatFormat format) { return format == ChatFormat::deepseek_v2 ? " " : ""; }

ChatFormat find_chat_format(const TokenizerFiles& files, const Tokenizer& tokenizer, const std::string& key) {
  const std::string text = chat_template_of(files);
  std::optional<ChatFormat> format = format_of_template(text);
  const bool has_roles = tokenizer.find(kUserToken) && tokenizer.find(kAssistantToken);
  if (text.empty() && has_roles) format = ChatFormat::deepseek_v3;
  CADRE_CHECK(
      format.has_value(),
      fmt::format("the tokenizer {}, allowed: the chat formats {}",
                  text.empty() ? "has no chat template" : "has a chat template that Cadre does not know", kFormats),
      fmt::format("name the nearest with {}", key));
  return *format;
}

}  // namespace cadre
