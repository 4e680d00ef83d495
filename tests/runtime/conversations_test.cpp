// SPDX-License-Identifier: Apache-2.0
// Conversations as training data: packing, truncation, what is held out, and runs that do not depend on ranks,
// micro-batches or a stop between two steps.
#include "runtime/data/conversations.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "runtime/data/marks.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/saver.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::conversations_test {
namespace {

using test::expect_message;
using test::message_of;

TEST(Packing, TakesEachDocumentOnceAndTheLongestFirst) {
  using Sequences = std::vector<std::vector<size_t>>;
  const std::vector<int64_t> lengths = {3, 8, 5, 2, 2, 6};
  EXPECT_EQ(pack(lengths, 8), (Sequences{{0, 2}, {1}, {3, 5}, {4}}));
  EXPECT_EQ(pack({}, 8), Sequences{});
  std::vector<int64_t> many;
  for (int64_t i = 0; i < 500; ++i) many.push_back(1 + i * i % 37);
  std::vector<size_t> seen;
  int64_t padding = 0;
  for (const std::vector<size_t>& sequence : pack(many, 40)) {
    int64_t length = 0;
    for (const size_t i : sequence) length += many[i], seen.push_back(i);
    ASSERT_LE(length, 40);
    padding += 40 - length;
  }
  std::ranges::sort(seen);
  std::vector<size_t> all(many.size());
  std::iota(all.begin(), all.end(), size_t{0});
  EXPECT_EQ(seen, all);
  EXPECT_LT(padding * 100, 3 * std::accumulate(many.begin(), many.end(), int64_t{0})) << "more than 3 % of the tokens";
}

Chat byte_chat() { return {ChatFormat::deepseek_v2, std::make_shared<ByteTokenizer>(), std::nullopt, 0}; }

// "User: a\n\nAssistant: b$" has 22 bytes.
TEST(PackConversations, LaysWholeConversationsBehindEachOther) {
  const std::vector<Conversation> conversations = {
      {{"user", "a"}, {"assistant", "b"}},
      {{"user", "a long question"}, {"assistant", "an answer that does not fit"}},  // 61 bytes, 33 up to the answer
      {{"user", "a question that alone is longer than any sequence"}, {"assistant", "b"}},
      {{"user", "c"}, {"assistant", "d", 0.5F}},
  };
  const PackedConversations packed = pack_conversations("test", conversations, byte_chat(), 46, 256);
  EXPECT_EQ(describe(packed.summary),
            "4 conversations, 90 tokens, 19 of them in answers; 2 truncated by 40 tokens, 1 of them left out, as no "
            "answer is left; packed in 2 sequences, 2.2 % padding");
  std::vector<int32_t> ids(static_cast<size_t>(packed.tokens.num_tokens()));
  packed.tokens.read(0, ids);
  std::string text, weights, begins;
  for (size_t i = 0; i < ids.size(); ++i) {
    text += ids[i] == 0 ? '$' : static_cast<char>(ids[i]);
    const float weight = packed.marks->weights[i];
    weights += weight == 0.0F ? '.' : weight == 1.0F ? '1' : 'h';
    begins += packed.marks->begins[i] != 0 ? 'B' : '-';
  }
  EXPECT_EQ(text,
            "User: a\n\nAssistant: b$User: c\n\nAssistant: d$$$User: a long question\n\nAssistant: an answer th$");
  EXPECT_EQ(weights, "...................111...................hhh...................................1111111111111.");
  EXPECT_EQ(begins, "B---------------------B---------------------B-B---------------------------------------------B");
}

TEST(PackConversations, CountsOneOfAKind) {
  const std::vector<Conversation> one = {{{"user", "a"}, {"assistant", "b"}}};
  EXPECT_EQ(describe(pack_conversations("test", one, byte_chat(), 22, 256).summary),
            "1 conversation, 22 tokens, 3 of them in answers; packed in 1 sequence, 0.0 % padding");
  EXPECT_EQ(describe(pack_conversations("test", one, byte_chat(), 21, 256).summary),
            "1 conversation, 21 tokens, 2 of them in answers; 1 truncated by 1 token; packed in 1 sequence, 0.0 % "
            "padding");
}

// Sums and the letters that tell them, so that the loss falls.
std::string some_conversations() {
  std::string lines;
  for (int i = 0; i < 160; ++i) {
    const int a = i * 7 % 10;
    const int b = i * 3 % 10;
    lines += fmt::format(
        R"({{"messages": [{{"role": "user", "content": "{}+{}"}}, {{"role": "assistant", "content": "{}"}}, )"
        R"({{"role": "user", "content": "again{}"}}, {{"role": "assistant", "content": "{}", "weight": {}}}]}})"
        "\n",
        a, b, a + b, std::string(static_cast<size_t>(i % 9), '!'), a + b, i % 3 == 0 ? 0.5 : 1.0);
  }
  return lines;
}

RunConfig chat_run(const std::filesystem::path& folder) {
  RunConfig config = test::small_run(folder);
  config.data.path = (folder / "chat.jsonl").string();
  config.data.format = "conversations";
  config.data.chat_format = "deepseek_v2";
  config.data.sequence_length = 64;
  config.data.validation_fraction = 0.2;
  config.model.eos_token_id = 0;
  config.model.num_nextn_predict_layers = 1;
  config.train.micro_batches = 3;
  return config;
}

class ChatFolder {
 public:
  explicit ChatFolder(Communicator& world) : folder_(world) {
    if (world.rank() == 0) test::write_file(folder_ / "chat.jsonl", some_conversations());
    Request written = world.barrier();
    wait(written);
  }
  std::filesystem::path path() const { return folder_.path(); }

 private:
  test::SharedDirectory folder_;
};

TEST(ConversationRun, IsTheSameOnAnyRanksAndMicroBatches) {
  std::vector<double> expected;
  const auto losses = [](Communicator world, RunConfig config) { return test::train(std::move(world), config, 8); };
  test::on_one_rank([&](Communicator world) {
    const ChatFolder folder(world);
    expected = losses(world.duplicate("run"), chat_run(folder.path()));
  });
  ASSERT_GE(expected.size(), 9U);
  EXPECT_LT(expected[7], expected[0] - 0.5);
  test::on_ranks(
      [&](Communicator& world) {
        const ChatFolder folder(world);
        for (const int64_t micro_batches : {1, 3}) {
          RunConfig config = chat_run(folder.path());
          config.train.micro_batches = micro_batches;
          // Balance losses are those of a micro-batch.
          config.model.aux_loss_alpha = 0.0;
          const std::vector<double> one = losses(world.duplicate("run"), config);
          config.train.micro_batches = 3;
          const std::vector<double> other = losses(world.duplicate("run"), config);
          for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], other[i], test::kRankTolerance) << i;
        }
        const std::vector<double> same = losses(world.duplicate("run"), chat_run(folder.path()));
        for (size_t i = 0; i < same.size(); ++i) EXPECT_NEAR(same[i], expected[i], test::kRankTolerance) << i;
      },
      {1, 2, 3, 4});
}

// The loss is a mean: what all answers weigh cancels out, in the gradients too.
TEST(ConversationRun, TheScaleOfAllWeightsDoesNotCount) {
  test::on_one_rank([](Communicator world) {
    const ChatFolder folder(world);
    RunConfig config = chat_run(folder.path());
    config.train.grad_clip = 0.0;
    std::vector<StepRecord> records;
    for (const char* weight : {"1", "4"}) {
      std::string lines;
      for (int i = 0; i < 60; ++i) {
        lines += fmt::format(R"({{"messages": [{{"role": "user", "content": "{0}"}}, )"
                             R"({{"role": "assistant", "content": "{0}{0}", "weight": {1}}}]}})"
                             "\n",
                             i, weight);
      }
      test::write_file(folder.path() / "chat.jsonl", lines);
      Trainer trainer(world.duplicate("run"), config);
      records.push_back(trainer.step());
    }
    EXPECT_NEAR(records[1].global.loss, records[0].global.loss, 1e-6);
    EXPECT_NEAR(records[1].grad_norm, records[0].grad_norm, 1e-5 * records[0].grad_norm);
    EXPECT_NEAR(records[1].global.balance_loss, records[0].global.balance_loss, 1e-6);
    EXPECT_EQ(records[1].global.loss_weight, 4.0 * records[0].global.loss_weight);
    EXPECT_LT(records[0].global.loss_weight, 0.5 * static_cast<double>(records[0].global.num_tokens));
  });
}

// Lengths and weights differ; one has no loss at all. The loss of all is the mean of the losses of each alone.
TEST(ConversationRun, PackedLossIsThatOfConversationsOneByOne) {
  test::on_one_rank([](Communicator world) {
    const ChatFolder folder(world);
    RunConfig config = chat_run(folder.path());
    config.data.sequence_length = config.model.max_position_embeddings = 160;
    config.data.validation = (folder.path() / "held_out.jsonl").string();
    config.model.initializer_range = 0.3;
    config.train.batch = config.train.micro_batches = 1;
    const auto loss_of = [&](const std::string& lines, int64_t num_sequences) {
      test::write_file(config.data.validation, lines);
      config.train.eval_batches = num_sequences;
      return Trainer(world.duplicate("run"), config).evaluate();
    };
    std::string all;
    double sum = 0.0;
    double weights = 0.0;
    double smallest = 1e9;
    double largest = 0.0;
    std::vector<Conversation> conversations;
    for (int i = 0; i < 12; ++i) {
      const std::string line = fmt::format(
          R"({{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "{}", "weight": {}}}]}})"
          "\n",
          std::string(static_cast<size_t>(2 + i * 5 % 11), static_cast<char>('a' + i)), i * i * i * i,
          std::array{1.0, 0.5, 3.0, 0.0}[static_cast<size_t>(i % 4)]);
      conversations.push_back(parse_conversation(line, "line"));
      all += line;
      double weight = 0.0;
      for (const float of_token : byte_chat().encode(conversations.back()).weights) weight += of_token;
      if (weight == 0.0) continue;
      const double loss = loss_of(line, 1);
      sum += weight * loss;
      weights += weight;
      smallest = std::min(smallest, loss);
      largest = std::max(largest, loss);
    }
    EXPECT_GT(largest - smallest, 0.1);
    const int64_t num_sequences = pack_conversations("all", conversations, byte_chat(), 160, 256).summary.sequences;
    EXPECT_LE(num_sequences, 4);
    EXPECT_NEAR(loss_of(all, num_sequences), sum / weights, 1e-6);
  });
}

// With a learning rate that grows without bound the loss of the answers held out rises soon.
TEST(ConversationRun, EndsWhenAnswersHeldOutGetNoBetter) {
  test::on_ranks(
      [](Communicator& world) {
        const ChatFolder folder(world);
        RunConfig config = chat_run(folder.path());
        config.train.steps = config.train.warmup_steps = 200;
        config.train.schedule = "linear";
        config.train.learning_rate = 2.0;
        config.train.eval_every = config.checkpoint.every = 5;
        config.train.patience = 2;
        config.checkpoint.keep = 1;
        config.log.every = 1000;
        int64_t last = 0;
        double at_the_end = 0.0;
        {
          Trainer trainer(world.duplicate("run"), config);
          EXPECT_EQ(trainer.run(), RunEnd::finished);
          last = trainer.steps_done();
          at_the_end = trainer.evaluate();
        }
        const BestEvaluation best(world, config.out, last, 2, 5);
        ASSERT_GT(best.step(), 0);
        EXPECT_EQ(last, best.step() + 10);
        EXPECT_GT(at_the_end, best.loss() + 0.01);
        config.checkpoint.resume = (checkpoint_root(config) / "best").string();
        Trainer kept(world.duplicate("best"), config);
        EXPECT_EQ(kept.steps_done(), best.step());
        EXPECT_NEAR(kept.evaluate(), best.loss(), 1e-6);
      },
      {1, 2});
}

TEST(ConversationRun, GoesOnToTheSameBits) {
  test::on_one_rank([](Communicator world) {
    const ChatFolder folder(world);
    RunConfig config = chat_run(folder.path());
    const std::vector<double> whole = test::train(world.duplicate("run"), config, 8);
    test::train(world.duplicate("run"), config, 5, /*save=*/true);
    config.checkpoint.resume = "auto";
    const std::vector<double> rest = test::train(world.duplicate("run"), config, 3);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(rest[i], whole[5 + i]) << i;
    EXPECT_EQ(rest.back(), whole.back());
  });
}

TEST(ConversationData, HoldsOutWholeConversationsOrAFileOfItsOwn) {
  test::on_one_rank([](Communicator world) {
    const ChatFolder folder(world);
    RunConfig config = chat_run(folder.path());
    const Dataset shared = open_dataset(config.data, config.model);
    EXPECT_NE(describe(shared.summaries[0]).find("deepseek_v2: 128 conversations"), std::string::npos);
    EXPECT_NE(describe(shared.summaries[0]).find("held out: 32 conversations"), std::string::npos);
    config.data.validation = config.data.path;
    const Dataset apart = open_dataset(config.data, config.model);
    EXPECT_NE(describe(apart.summaries[0]).find("160 conversations"), std::string::npos);
    ASSERT_TRUE(apart.validation_summary.has_value());
    EXPECT_EQ(apart.validation.front().tokens.num_tokens(), apart.train.front().tokens.num_tokens());
    test::write_file(folder.path() / "chat.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    expect_message(message_of([&] { open_dataset(config.data, config.model); }), {"chat.jsonl: line 1", "assistant"});
    test::write_file(folder.path() / "chat.jsonl", "\n\n");
    expect_message(message_of([&] { open_dataset(config.data, config.model); }), {"no conversation in it"});
    config.data.format = "text";
    config.data.mask_documents = true;
    config.model.eos_token_id = -1;
    expect_message(message_of([&] { open_dataset(config.data, config.model); }),
                   {"data.mask_documents = true with model.eos_token_id = -1"});
  });
}

}  // namespace
}  // namespace cadre::conversations_test
