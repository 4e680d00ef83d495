// SPDX-License-Identifier: Apache-2.0
// Conversations as training data: each is a document, sequences are packed from whole ones, and the loss is that of the
// answers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/chat/chat.hpp"
#include "runtime/data/marks.hpp"
#include "runtime/data/token_source.hpp"

namespace cadre {

// What became of the conversations of a file.
struct PackingSummary {
  int64_t conversations = 0;
  int64_t truncated = 0;       // longer than a sequence: their first tokens are kept
  int64_t cut_tokens = 0;      // of them, tokens that are not
  int64_t left_out = 0;        // truncated ones of which no answer is left
  int64_t tokens = 0;          // of those that are kept
  int64_t counted_tokens = 0;  // of them, tokens with a loss
  int64_t sequences = 0;
  int64_t padding = 0;  // tokens that fill the sequences, without a loss
};

// "300 conversations, 20110 tokens, 9120 of them in answers; 2 truncated by 85 tokens; packed in 160 sequences, 1.9 % padding".
std::string describe(const PackingSummary& summary);

// Sequences one after the other, and one more token, so that each is a window (BatchReader).
struct PackedConversations {
  TokenSource tokens;
  std::shared_ptr<const TokenMarks> marks;
  PackingSummary summary;
};

// `name` stands in messages; padding is the token that ends answers.
PackedConversations pack_conversations(const std::string& name, std::span<const Conversation> conversations,
                                       const Chat& chat, int64_t sequence_length, int64_t vocab_size);

}  // namespace cadre
