// SPDX-License-Identifier: Apache-2.0
// The chat formats: texts that transformers' apply_chat_template makes (tests/support/chat_expectations.py prints them),
// which of them a tokenizer asks for, and which tokens of a conversation have a loss.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runtime/chat/chat.hpp"
#include "runtime/chat/conversation.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"

namespace cadre::chat_format_test {
namespace {

using test::expect_message;
using test::message_of;

const Conversation kOneTurn = {{"user", "Hi"}, {"assistant", "Hello!"}};
const Conversation kQuestion = {{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Hello!"}, {"user", "2+2?"}};
const Conversation kThoughts = {{"system", "A"},  {"system", "B"},
                                {"user", "2+2?"}, {"assistant", "<think>\nhm\n</think>\n\nfour"},
                                {"user", "3+3?"}, {"assistant", "six"}};

std::string text_of(const std::vector<ChatPart>& parts) {
  std::string text;
  for (const ChatPart& part : parts) {
    switch (part.kind) {
      case ChatPart::Kind::text: text += part.text; break;
      case ChatPart::Kind::begin: text += "<｜begin▁of▁sentence｜>"; break;
      case ChatPart::Kind::end: text += "<｜end▁of▁sentence｜>"; break;
    }
  }
  return text;
}

std::string answers_of(const std::vector<ChatPart>& parts) {
  std::vector<ChatPart> answers;
  for (const ChatPart& part : parts) {
    if (part.is_answer) answers.push_back(part);
  }
  return text_of(answers);
}

struct Expected {
  ChatFormat format;
  const Conversation& conversation;
  const char* whole;
  const char* prompt;  // nullptr: the conversation ends with an answer
};

TEST(ChatFormat, IsWhatTransformersMakes) {
  const Expected cases[] = {
      {ChatFormat::deepseek_v2, kOneTurn, "<｜begin▁of▁sentence｜>User: Hi\n\nAssistant: Hello!<｜end▁of▁sentence｜>",
       nullptr},
      {ChatFormat::deepseek_v2, kQuestion,
       "<｜begin▁of▁sentence｜>Be brief.\n\nUser: Hi\n\nAssistant: Hello!<｜end▁of▁sentence｜>User: 2+2?\n\n",
       "<｜begin▁of▁sentence｜>Be brief.\n\nUser: Hi\n\nAssistant: Hello!<｜end▁of▁sentence｜>User: "
       "2+2?\n\nAssistant:"},
      {ChatFormat::deepseek_v2, kThoughts,
       "<｜begin▁of▁sentence｜>A\n\nB\n\nUser: 2+2?\n\nAssistant: "
       "<think>\nhm\n</think>\n\nfour<｜end▁of▁sentence｜>User: "
       "3+3?\n\nAssistant: six<｜end▁of▁sentence｜>",
       nullptr},
      {ChatFormat::deepseek_v3, kOneTurn,
       "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜>", nullptr},
      {ChatFormat::deepseek_v3, kQuestion,
       "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>2+2?",
       "<｜begin▁of▁sentence｜>Be "
       "brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>"},
      {ChatFormat::deepseek_v3, kThoughts,
       "<｜begin▁of▁sentence｜>A\n\nB<｜User｜>2+2?<｜Assistant｜><think>\nhm\n</"
       "think>\n\nfour<｜end▁of▁sentence｜><｜User｜>3+3?"
       "<｜Assistant｜>six<｜end▁of▁sentence｜>",
       nullptr},
      {ChatFormat::deepseek_r1, kOneTurn,
       "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜>", nullptr},
      {ChatFormat::deepseek_r1, kQuestion,
       "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>2+2?",
       "<｜begin▁of▁sentence｜>Be "
       "brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>\n"},
      {ChatFormat::deepseek_r1, kThoughts,
       "<｜begin▁of▁sentence｜>A\n\nB<｜User｜>2+2?<｜Assistant｜>\n\nfour<｜end▁of▁sentence｜><｜User｜>3+3?<"
       "｜Assistant｜>six"
       "<｜end▁of▁sentence｜>",
       nullptr},
  };
  for (const Expected& expected : cases) {
    SCOPED_TRACE(name_of(expected.format));
    EXPECT_EQ(text_of(whole_conversation(expected.format, expected.conversation)), expected.whole);
    if (expected.prompt == nullptr) {
      expect_message(message_of([&] { prompt_of(expected.format, expected.conversation); }), {"already"});
    } else {
      EXPECT_EQ(text_of(prompt_of(expected.format, expected.conversation)), expected.prompt);
    }
  }
}

// What training sees before an answer is what generation writes before it.
TEST(ChatFormat, AnswersContinueThePromptOfTheirQuestion) {
  for (const char* name : {"deepseek_v2", "deepseek_v3", "deepseek_r1"}) {
    const ChatFormat format = chat_format_named(name);
    Conversation question = {{"system", "A"}, {"user", "2+2?"}};
    const std::string prompt = text_of(prompt_of(format, question));
    question.push_back({"assistant", "<think>\nhm\n</think>\n\nfour"});
    const std::vector<ChatPart> parts = whole_conversation(format, question);
    EXPECT_EQ(text_of(parts), prompt + answers_of(parts)) << name;
    EXPECT_TRUE(answers_of(parts).ends_with("hm\n</think>\n\nfour<｜end▁of▁sentence｜>")) << name;
  }
}

class ChatFiles : public testing::Test {
 protected:
  // A tokenizer of all bytes, with a configuration.
  TokenizerFiles files(const nlohmann::json& config) {
    return {{"tokenizer.json", byte_tokenizer_json()}, {"tokenizer_config.json", config.dump()}};
  }
  ChatFormat find(const nlohmann::json& config) {
    const TokenizerFiles with = files(config);
    return find_chat_format(with, *make_tokenizer(with, "test"), "data.chat_format");
  }
};

TEST_F(ChatFiles, TheTemplateNamesTheFormat) {
  const char* v2 = "{{ 'User: ' + message['content'] }}{{ 'Assistant: ' + message['content'] }}{{ 'Assistant:' }}";
  const std::string v3 = "{{'<｜User｜>' + message['content']}}{{'<｜Assistant｜>' + message['content']}}";
  const std::string r1 = v3 + "{% set content = content.split('</think>')[-1] %}{{'<｜Assistant｜><think>\\n'}}";
  EXPECT_EQ(find({{"chat_template", v2}}), ChatFormat::deepseek_v2);
  EXPECT_EQ(find({{"chat_template", v3}}), ChatFormat::deepseek_v3);
  EXPECT_EQ(find({{"chat_template", r1}}), ChatFormat::deepseek_r1);
  EXPECT_EQ(find({{"chat_template", {{{"name", "tool"}, {"template", v2}}, {{"name", "default"}, {"template", v3}}}}}),
            ChatFormat::deepseek_v3);
  for (const std::string& other : {std::string("{{ '<|im_start|>' }}"), r1 + "{% if thinking %}"}) {
    expect_message(
        message_of([&] {
          find({{"chat_template", other}});
        }),
        {"chat template that Cadre does not know", "deepseek_v2 | deepseek_v3 | deepseek_r1", "data.chat_format"});
  }
  expect_message(message_of([&] { find(nlohmann::json::object()); }), {"has no chat template", "data.chat_format"});
}

// A byte-level tokenizer with the tokens of DeepSeek-V3 behind the bytes; ids as transformers' apply_chat_template gives them
// with it. Without a template the tokens of the roles name the format.
TEST_F(ChatFiles, TokensAreThoseOfTransformers) {
  auto tokenizer = nlohmann::json::parse(byte_tokenizer_json());
  const char* names[] = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"};
  for (int i = 0; i < 4; ++i) {
    tokenizer["added_tokens"].push_back({{"id", 256 + i},
                                         {"content", names[i]},
                                         {"single_word", false},
                                         {"lstrip", false},
                                         {"rstrip", false},
                                         {"normalized", false},
                                         {"special", i < 2}});
  }
  const test::TemporaryDirectory folder;
  test::write_file(folder / "tokenizer.json", tokenizer.dump());
  test::write_file(folder / "tokenizer_config.json",
                   nlohmann::json{{"bos_token", names[0]}, {"eos_token", names[1]}}.dump());
  const Chat chat = open_chat(folder.path().string(), "auto", ModelConfig(), "data.chat_format");
  EXPECT_EQ(chat.format(), ChatFormat::deepseek_v3);
  EXPECT_EQ(chat.encode(kQuestion).ids,
            (std::vector<int32_t>{256, 66, 101, 32,  98,  114, 105, 101, 102, 46, 258, 72, 105,
                                  259, 72, 101, 108, 108, 111, 33,  257, 258, 50, 43,  50, 63}));
  const ChatTokens thoughts = chat.encode(kThoughts);
  EXPECT_EQ(thoughts.ids,
            (std::vector<int32_t>{256, 65,  10,  10,  66,  258, 50, 43, 50,  63,  259, 60,  116, 104, 105, 110,
                                  107, 62,  10,  104, 109, 10,  60, 47, 116, 104, 105, 110, 107, 62,  10,  10,
                                  102, 111, 117, 114, 257, 258, 51, 43, 51,  63,  259, 115, 105, 120, 257}));
  for (size_t i = 0; i < thoughts.ids.size(); ++i) {
    EXPECT_EQ(thoughts.weights[i], (i > 10 && i < 37) || i > 42 ? 1.0F : 0.0F) << i;
  }
}

// With bytes and byte 0 as the end: every byte is a token.
TEST(Chat, OnlyAnswersHaveALoss) {
  const Chat chat(ChatFormat::deepseek_v2, std::make_shared<ByteTokenizer>(), std::nullopt, 0);
  const ChatTokens tokens = chat.encode({{"user", "a"}, {"assistant", "bc"}, {"user", "d"}, {"assistant", "e", 0.5F}});
  std::string text;
  for (const int32_t id : tokens.ids) text += id == 0 ? '$' : static_cast<char>(id);
  EXPECT_EQ(text, "User: a\n\nAssistant: bc$User: d\n\nAssistant: e$");
  std::string weights;
  for (const float weight : tokens.weights) weights += weight == 0.0F ? '.' : weight == 1.0F ? '1' : 'h';
  EXPECT_EQ(weights, "...................1111...................hhh");
  const std::vector<int32_t> prompt = chat.prompt({{"user", "a"}});
  EXPECT_EQ(prompt, std::vector<int32_t>(tokens.ids.begin(), tokens.ids.begin() + 19));
}

TEST(Chat, NeedsATokenThatEndsAnAnswer) {
  ModelConfig model;
  expect_message(message_of([&] { open_chat("bytes", "deepseek_v2", model, "data.chat_format"); }),
                 {"bytes: no token ends a text", "model.eos_token_id"});
  model.eos_token_id = 0;
  EXPECT_EQ(open_chat("bytes", "deepseek_v2", model, "data.chat_format").end_token(), 0);
}

TEST(Conversations, LinesAreChecked) {
  const auto parse = [](const char* line) { return parse_conversation(line, "f: line 1"); };
  EXPECT_EQ(parse(R"({"prompt": "a", "completion": "b", "id": 3})"), (Conversation{{"user", "a"}, {"assistant", "b"}}));
  EXPECT_EQ(parse(R"({"messages": [{"role": "assistant", "content": "é", "weight": 0.5}]})"),
            (Conversation{{"assistant", "é", 0.5F}}));
  const std::pair<const char*, const char*> refused[] = {
      {"[]", "not a JSON object"},
      {"{\"prompt\": \"\xff\"}", "not a JSON object"},
      {R"({"text": "a"})", "prompt is missing"},
      {R"({"prompt": "a", "completion": 3})", "completion is a JSON number"},
      {R"({"messages": []})", "messages is empty"},
      {R"({"messages": {}})", "messages is a JSON object"},
      {R"({"messages": [3]})", "message 1: a JSON number"},
      {R"({"messages": [{"role": "tool", "content": "a"}]})", "message 1: role = \"tool\""},
      {R"({"messages": [{"role": "user"}]})", "message 1: content is missing"},
      {R"({"messages": [{"role": "assistant", "content": "a", "weight": -1}]})", "weight = -1"},
      {R"({"messages": [{"role": "user", "content": "a", "weight": 1}]})", "weight = 1 of a message of user"},
  };
  for (const auto& [line, why] : refused) {
    expect_message(message_of([&, text = line] { parse(text); }), {"f: line 1", why});
  }
}

}  // namespace
}  // namespace cadre::chat_format_test
