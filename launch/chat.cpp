// SPDX-License-Identifier: Apache-2.0
#include "launch/chat.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "comm/job/wait.hpp"
#include "runtime/infer/sampling.hpp"

namespace cadre {
namespace {

// A person may think for as long.
constexpr double kTypingDeadlineSeconds = 30.0 * 24 * 3600;

using Show = std::function<void(std::string_view)>;

// Room for the answer: --max-new, or less where the context ends. Throws where a prompt fills it.
int64_t answer_room(const ModelConfig& model, const std::vector<TextRequest>& requests, int64_t max_new) {
  size_t longest = 0;
  for (const TextRequest& request : requests) longest = std::max(longest, request.prompt.size());
  const int64_t room = model.max_position_embeddings - static_cast<int64_t>(longest);
  CADRE_CHECK(room >= 1,
              fmt::format("the conversation has {} tokens, allowed: fewer than max_position_embeddings = {}", longest,
                          model.max_position_embeddings),
              "begin a new conversation or shorten the messages");
  return std::min(max_new, room);
}

// The next answer of each conversation, on all ranks. That of the first goes to `show` of rank 0 as it is made, if given.
std::vector<std::string> answers(Worker& worker, const std::vector<Conversation>& conversations,
                                 const Answering& answering, const Show& show) {
  std::vector<TextRequest> requests;
  for (const Conversation& conversation : conversations) {
    requests.push_back({answering.chat.prompt(conversation), answering.sampling, answering.facts});
  }
  GenerateOptions options = answering.options;
  options.max_new = answer_room(worker.model().config(), requests, options.max_new);
  options.emits_on_all_ranks = true;
  std::vector<std::string> texts(conversations.size());
  std::vector<StopStrings> stops(conversations.size(), StopStrings(options.stop_strings));
  std::vector<Utf8Stream> characters(conversations.size());
  std::vector<char> has_begun(conversations.size(), 0);
  const std::string_view before = before_answer(answering.chat.format());
  generate(worker, requests, options, [&](size_t i, std::optional<int32_t> token) {
    std::string made = characters[i].put(token ? stops[i].put(answering.tokenizer.piece(*token)) : stops[i].finish());
    if (!token) made += characters[i].finish();
    if (!made.empty() && !std::exchange(has_begun[i], 1) && made.starts_with(before)) made.erase(0, before.size());
    texts[i] += made;
    if (i == 0 && show && worker.world().rank() == 0 && !made.empty()) show(made);
  });
  return texts;
}

void print_bytes(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  require_stdout();
}

Conversation begin_conversation(const ChatOptions& options) {
  return options.system.empty() ? Conversation() : Conversation{{"system", options.system}};
}

void chat_with_prompts(Worker& worker, const ChatOptions& options, const Answering& answering) {
  std::vector<Conversation> conversations;
  for (const std::string& prompt : options.prompts) {
    conversations.push_back(begin_conversation(options));
    conversations.back().push_back({"user", prompt});
  }
  const std::vector<std::string> texts = answers(worker, conversations, answering, {});
  for (const std::string& text : texts) {
    if (worker.world().rank() == 0) print_bytes(text + "\n");
  }
}

// A conversation of a file, and how many of its messages have been taken over.
struct Script {
  Conversation asked;
  Conversation answered;

  // Takes messages over up to an open question; false where none is left.
  bool next_question() {
    for (size_t& i = taken; i < asked.size();) {
      answered.push_back(asked[i++]);
      const bool has_answer = i < asked.size() && asked[i].role == kAssistant;
      if (answered.back().role == "user" && !has_answer) return true;
    }
    return false;
  }
  size_t taken = 0;
};

std::string to_line(const Conversation& conversation) {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  for (const Message& message : conversation)
    messages.push_back({{"role", message.role}, {"content", message.content}});
  return nlohmann::ordered_json{{"messages", std::move(messages)}}.dump(-1, ' ', false,
                                                                        nlohmann::json::error_handler_t::replace) +
         "\n";
}

void chat_with_file(Worker& worker, const ChatOptions& options, const Answering& answering) {
  std::vector<Script> scripts;
  for (Conversation& conversation : read_conversations(options.conversations, /*need_answers=*/false)) {
    scripts.push_back({std::move(conversation), {}});
  }
  for (;;) {
    std::vector<Script*> open;
    std::vector<Conversation> questions;
    for (Script& script : scripts) {
      if (!script.next_question()) continue;
      open.push_back(&script);
      questions.push_back(script.answered);
    }
    if (open.empty()) break;
    std::vector<std::string> texts = answers(worker, questions, answering, {});
    for (size_t i = 0; i < open.size(); ++i) open[i]->answered.push_back({kAssistant, std::move(texts[i])});
  }
  for (const Script& script : scripts) {
    if (worker.world().rank() == 0) print_bytes(to_line(script.answered));
  }
}

// The line of rank 0, on all ranks; none at the end of the input.
std::optional<std::string> shared_line(Worker& worker, const std::optional<std::string>& mine) {
  const Communicator& world = worker.world();
  const bool reads = world.rank() == 0;
  const std::vector<int64_t> size = {reads && mine ? static_cast<int64_t>(mine->size()) + 1 : 0};
  const auto length = wait(world.all_reduce(size, ReduceOp::sum), kTypingDeadlineSeconds, {.phase = "standard input"});
  if (length.front() == 0) return std::nullopt;
  std::vector<int32_t> bytes(static_cast<size_t>(length.front()) - 1, 0);
  if (reads) std::ranges::transform(*mine, bytes.begin(), [](char c) { return static_cast<unsigned char>(c); });
  bytes = worker.await(world.all_reduce(std::move(bytes), ReduceOp::sum));
  std::string line;
  for (const int32_t byte : bytes) line += static_cast<char>(byte);
  return line;
}

void chat_with_input(Worker& worker, const ChatOptions& options, const Answering& answering) {
  const bool reads = worker.world().rank() == 0;
  const bool is_person = reads && ::isatty(STDIN_FILENO) == 1;
  Conversation conversation = begin_conversation(options);
  for (;;) {
    std::optional<std::string> mine;
    if (is_person) fmt::print(stderr, "> ");
    if (std::string line; reads && std::getline(std::cin, line)) mine = std::move(line);
    std::optional<std::string> line = shared_line(worker, mine);
    if (!line) return;
    if (line->ends_with('\r')) line->pop_back();
    if (line->empty()) continue;
    conversation.push_back({"user", *line});
    std::vector<std::string> texts = answers(worker, {conversation}, answering, print_bytes);
    if (reads) print_bytes("\n");
    conversation.push_back({kAssistant, std::move(texts.front())});
  }
}

}  // namespace

void chat(Worker& worker, const ChatOptions& options, const Answering& answering) {
  if (!options.conversations.empty()) return chat_with_file(worker, options, answering);
  if (!options.prompts.empty()) return chat_with_prompts(worker, options, answering);
  chat_with_input(worker, options, answering);
}

}  // namespace cadre
