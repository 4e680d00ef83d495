// SPDX-License-Identifier: Apache-2.0
// The facts of the tokens of whole sequences, and those of the rows that MTP modules keep of them.
#include "layers/router/token_facts.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace cadre::token_facts_test {
namespace {

std::vector<int64_t> numbers(const TokenFacts& facts, int64_t count) {
  std::vector<int64_t> found;
  for (int64_t t = 0; t < count; ++t) found.push_back(facts.number_of(t));
  return found;
}

std::vector<int64_t> positions(const TokenFacts& facts, int64_t count) {
  std::vector<int64_t> found;
  for (int64_t t = 0; t < count; ++t) found.push_back(facts.position_of(t));
  return found;
}

std::vector<int32_t> values(const Tensor& fact) { return {fact.data<int32_t>(), fact.data<int32_t>() + fact.numel()}; }

Tensor view(std::vector<int32_t>& of) { return {of.data(), DType::i32, {static_cast<int64_t>(of.size())}}; }

TEST(TokenFacts, count_tokens_and_positions) {
  const TokenFacts sequences = {.first = 8, .sequence_length = 4};
  EXPECT_EQ(numbers(sequences, 5), (std::vector<int64_t>{8, 9, 10, 11, 12}));
  EXPECT_EQ(positions(sequences, 5), (std::vector<int64_t>{0, 1, 2, 3, 0}));
  EXPECT_EQ(positions({.first = 8}, 3), (std::vector<int64_t>{8, 9, 10}));  // one sequence
}

// Two sequences of four tokens, the third and fourth of a batch; each module keeps one token a sequence less.
TEST(TokenFacts, rows_of_mtp_modules_have_those_of_the_tokens_they_stand_for) {
  std::vector<int32_t> task = {0, 1, 2, 3, 4, 5, 6, 7};
  std::vector<int32_t> experts = {10, 11, 12, 13, 14, 15, 16, 17};
  std::vector<int32_t> position = {20, 21, 22, 23, 24, 25, 26, 27};
  TokenFacts facts = {.seed = 7, .step = 3, .first = 8, .sequence_length = 4};
  facts.task = view(task);
  facts.num_experts = view(experts);
  Arena arena;
  std::vector<int32_t> kept = {0, 1, 2, 4, 5, 6};
  const TokenFacts one = shifted(arena, facts, view(kept), 3, 4);
  EXPECT_EQ(one.seed, 7U);
  EXPECT_EQ(one.step, 3);
  EXPECT_EQ(one.sequence_length, 3);
  EXPECT_EQ(numbers(one, 6), (std::vector<int64_t>{8, 9, 10, 12, 13, 14}));
  EXPECT_EQ(positions(one, 6), (std::vector<int64_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(values(one.task), (std::vector<int32_t>{0, 1, 2, 4, 5, 6}));
  EXPECT_EQ(values(one.num_experts), (std::vector<int32_t>{10, 11, 12, 14, 15, 16}));
  EXPECT_FALSE(one.position.defined());

  facts.position = view(position);
  std::vector<int32_t> kept_of_those = {0, 1, 3, 4};
  const TokenFacts two = shifted(arena, shifted(arena, facts, view(kept), 3, 4), view(kept_of_those), 2, 3);
  EXPECT_EQ(two.sequence_length, 2);
  EXPECT_EQ(numbers(two, 4), (std::vector<int64_t>{8, 9, 12, 13}));
  EXPECT_EQ(positions(two, 4), (std::vector<int64_t>{20, 21, 24, 25}));
  EXPECT_EQ(values(two.task), (std::vector<int32_t>{0, 1, 4, 5}));
}

TEST(TokenFacts, nothing_is_left_of_sequences_of_one_token) {
  Arena arena;
  const TokenFacts none = shifted(arena, {.first = 5, .sequence_length = 1}, Tensor(nullptr, DType::i32, {0}), 0, 1);
  EXPECT_EQ(none.sequence_length, 0);
  EXPECT_EQ(none.first, 5);
}

}  // namespace
}  // namespace cadre::token_facts_test
