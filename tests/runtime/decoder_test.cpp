// SPDX-License-Identifier: Apache-2.0
// The bits of logits: those of a text that reads on alone, token by token, whatever is read with it, in whatever pieces, and
// after tokens that were taken back; in every precision, with either attention and on any number of ranks.
#include "runtime/infer/decoder.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/base/random.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::decoder_test {
namespace {

constexpr int64_t kVocabulary = 50;
constexpr int64_t kCapacity = 40;
constexpr int64_t kPrompt = 19;  // more than attention computes one by one
constexpr int64_t kLength = 30;

struct Case {
  const char* model_type;
  const char* precision;
};

WorkerOptions options_of(const Case& test_case) {
  WorkerOptions options;
  ModelConfig& model = options.model;
  model.model_type = test_case.model_type;
  model.vocab_size = kVocabulary;
  model.hidden_size = 72;
  model.num_hidden_layers = 3;
  model.max_position_embeddings = kCapacity;
  model.initializer_range = 0.2;
  model.num_attention_heads = 4;
  model.intermediate_size = 90;
  model.n_routed_experts = 6;
  model.num_experts_per_tok = 2;
  model.n_shared_experts = 1;
  model.moe_intermediate_size = 40;
  model.first_k_dense_replace = 1;
  if (model.model_type == "deepseek_v3") {
    model.q_lora_rank = 24;
    model.kv_lora_rank = 20;
    model.qk_nope_head_dim = 12;
    model.qk_rope_head_dim = 8;
    model.v_head_dim = 10;
  }
  fill_defaults(model);
  options.compute.precision = test_case.precision;
  options.with_grad = false;
  return options;
}

std::vector<int32_t> text_of(uint64_t id) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < kLength; ++i) {
    tokens.push_back(static_cast<int32_t>(Random(4, "text", id).below(kVocabulary, static_cast<uint64_t>(i))));
  }
  return tokens;
}

using Bits = std::vector<std::vector<float>>;  // by position, what is said of the token behind it

class Reader {
 public:
  Reader(Worker& worker, int64_t num_slots) : decoder_(worker, num_slots, kCapacity, nullptr), num_slots_(num_slots) {}

  struct Piece {
    int64_t first, count;
  };
  // Reads a piece of each slot's text, wrong tokens where `garbage` says so, and notes the logits.
  void read(const std::vector<std::vector<int32_t>>& texts, const std::vector<Piece>& pieces, std::vector<Bits>& bits,
            bool garbage = false) {
    std::vector<Reading> readings;
    for (size_t slot = 0; slot < static_cast<size_t>(num_slots_); ++slot) {
      const auto& [first, count] = pieces[slot];
      Reading reading{.first = first, .tokens = {}, .num_logits = count, .tasks = {}};
      for (int64_t i = first; i < first + count; ++i) {
        const int32_t token = texts[slot][static_cast<size_t>(i)];
        reading.tokens.push_back(garbage ? (token + 1) % kVocabulary : token);
      }
      readings.push_back(reading);
    }
    const Tensor logits = decoder_.read(readings);
    const float* row = logits.data<float>();
    for (size_t slot = 0; slot < readings.size(); ++slot) {
      for (int64_t i = 0; i < pieces[slot].count; ++i, row += kVocabulary) {
        if (!garbage) bits[slot][static_cast<size_t>(pieces[slot].first + i)] = {row, row + kVocabulary};
      }
    }
  }

 private:
  Decoder decoder_;
  int64_t num_slots_;
};

class DecoderBits : public testing::TestWithParam<Case> {};

TEST_P(DecoderBits, DependOnTheTextAlone) {
  test::on_ranks(
      [&](Communicator& world) {
        Worker worker(world.duplicate("test"), options_of(GetParam()));
        worker.store().initialise(3);
        const auto rank = static_cast<uint64_t>(world.rank());
        const std::vector<std::vector<int32_t>> texts = {text_of(3 * rank), text_of(3 * rank + 1),
                                                         text_of(3 * rank + 2)};
        std::vector<Bits> expected(3, Bits(kLength));
        // One rank after the other, one text after the other.
        for (int turn = 0; turn < 3 * world.size(); ++turn) {
          const bool mine = turn / 3 == world.rank();
          const auto text = static_cast<size_t>(turn % 3);
          Reader alone(worker, mine ? 1 : 0);
          std::vector<Bits> bits(1, Bits(kLength));
          alone.read({texts[text]}, {{0, kPrompt}}, bits);
          for (int64_t i = kPrompt; i < kLength; ++i) alone.read({texts[text]}, {{i, 1}}, bits);
          if (mine) expected[text] = bits.front();
        }

        std::vector<Bits> bits(3, Bits(kLength));
        Reader together(worker, 3);
        together.read(texts, {{0, kPrompt}, {0, 0}, {0, kPrompt}}, bits);
        together.read(texts, {{19, 3}, {0, kPrompt}, {19, 1}}, bits);
        together.read(texts, {{22, 4}, {19, 2}, {20, 3}}, bits, /*garbage=*/true);
        together.read(texts, {{22, 2}, {19, 4}, {20, 1}}, bits);
        together.read(texts, {{24, 6}, {23, 0}, {21, 9}}, bits);
        together.read(texts, {{0, 0}, {23, 7}, {0, 0}}, bits);
        for (size_t text = 0; text < 3; ++text) {
          for (size_t position = 0; position < kLength; ++position) {
            EXPECT_EQ(bits[text][position], expected[text][position]) << "text " << text << " position " << position;
          }
        }
      },
      {1, 2, 3});
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderBits,
                         testing::Values(Case{"deepseek", "fp32"}, Case{"deepseek_v3", "fp32"},
                                         Case{"deepseek_v3", "bf16"}, Case{"deepseek_v3", "fp8"}),
                         [](const auto& parameter) {
                           return fmt::format("{}_{}", parameter.param.model_type, parameter.param.precision);
                         });

}  // namespace
}  // namespace cadre::decoder_test
