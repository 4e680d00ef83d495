// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/conversations.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "runtime/data/marks.hpp"

namespace cadre {
namespace {

// The tokens that are kept; the first is no target.
int64_t num_counted(const ChatTokens& tokens) {
  return std::ranges::count_if(tokens.weights, [](float weight) { return weight != 0.0F; });
}

std::string counted(int64_t number, const char* what) {
  return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s");
}

// Those that are trained on.
std::vector<ChatTokens> encode_conversations(std::span<const Conversation> conversations, const Chat& chat,
                                             int64_t sequence_length, PackingSummary& summary) {
  const auto most = static_cast<size_t>(sequence_length);
  std::vector<ChatTokens> documents;
  for (const Conversation& conversation : conversations) {
    ChatTokens tokens = chat.encode(conversation);
    ++summary.conversations;
    if (tokens.ids.size() > most) {
      ++summary.truncated;
      summary.cut_tokens += static_cast<int64_t>(tokens.ids.size() - most);
      tokens.ids.resize(most);
      tokens.weights.resize(most);
      if (num_counted(tokens) == 0) {
        ++summary.left_out;
        continue;
      }
    }
    summary.tokens += static_cast<int64_t>(tokens.ids.size());
    summary.counted_tokens += num_counted(tokens);
    documents.push_back(std::move(tokens));
  }
  return documents;
}

}  // namespace

std::string describe(const PackingSummary& summary) {
  std::string text = fmt::format("{}, {}, {} of them in answers", counted(summary.conversations, "conversation"),
                                 counted(summary.tokens, "token"), summary.counted_tokens);
  if (summary.truncated > 0)
    text += fmt::format("; {} truncated by {}", summary.truncated, counted(summary.cut_tokens, "token"));
  if (summary.left_out > 0) text += fmt::format(", {} of them left out, as no answer is left", summary.left_out);
  const auto all = static_cast<double>(std::max<int64_t>(1, summary.tokens + summary.padding));
  return text + fmt::format("; packed in {}, {:.1f} % padding", counted(summary.sequences, "sequence"),
                            100.0 * static_cast<double>(summary.padding) / all);
}

PackedConversations pack_conversations(const std::string& name, std::span<const Conversation> conversations,
                                       const Chat& chat, int64_t sequence_length, int64_t vocab_size) {
  PackingSummary summary;
  const std::vector<ChatTokens> documents = encode_conversations(conversations, chat, sequence_length, summary);
  std::vector<int64_t> lengths;
  for (const ChatTokens& document : documents) lengths.push_back(static_cast<int64_t>(document.ids.size()));
  auto ids = std::make_shared<std::vector<uint32_t>>();
  auto marks = std::make_shared<TokenMarks>();
  const auto add = [&](uint32_t id, float weight, bool begins) {
    ids->push_back(id);
    marks->weights.push_back(weight);
    marks->begins.push_back(begins ? 1 : 0);
  };
  const auto padding = static_cast<uint32_t>(chat.end_token());
  for (const std::vector<size_t>& sequence : pack(lengths, sequence_length)) {
    ++summary.sequences;
    int64_t room = sequence_length;
    for (const size_t i : sequence) {
      for (size_t t = 0; t < documents[i].ids.size(); ++t) {
        add(static_cast<uint32_t>(documents[i].ids[t]), documents[i].weights[t], t == 0);
      }
      room -= lengths[i];
    }
    summary.padding += room;
    for (int64_t i = 0; i < room; ++i) add(padding, 0.0F, i == 0);
  }
  add(padding, 0.0F, true);
  const uint32_t* first = ids->data();
  const auto num_tokens = static_cast<int64_t>(ids->size());
  return {TokenSource(name, std::move(ids), first, num_tokens, vocab_size), std::move(marks), summary};
}

}  // namespace cadre
