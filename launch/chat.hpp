// SPDX-License-Identifier: Apache-2.0
// Conversations with a model: cadre generate --chat.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/chat/chat.hpp"
#include "runtime/infer/generate.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

struct ChatOptions {
  bool is_on = false;
  std::string format;         // empty: that of the run, or auto
  std::string system;         // message that begins conversations of --prompt and of standard input
  std::string conversations;  // JSON Lines file
  std::vector<std::string> prompts;
};

// What answers are made with.
struct Answering {
  const Chat& chat;
  const Tokenizer& tokenizer;
  Sampling sampling;
  RequestFacts facts;
  GenerateOptions options;
};

// Collective over the ranks of the worker. Answers the questions of the options: those of --prompt, one a conversation, as
// text; those of the file, which each user message without an answer behind it is, as JSON Lines of whole conversations
// (schema generate.chat); or, without either, lines of standard input as one conversation, until it ends. Rank 0 reads
// and prints.
void chat(Worker& worker, const ChatOptions& options, const Answering& answering);

}  // namespace cadre
