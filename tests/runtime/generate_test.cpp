// SPDX-License-Identifier: Apache-2.0
// Generation: the cache changes nothing, nor does the number of ranks; only the first rank of a group holds the text;
// the end token ends it on all ranks.
#include "runtime/infer/generate.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::generate_test {
namespace {

using Tokens = std::vector<int32_t>;

const Tokens kPrompt = {3, 14, 15, 9, 2, 6};

struct TextOptions {
  int64_t max_new = 20;
  Sampling sampling;
};

// Large weights, so that the logits lie far apart and a greedy choice does not hang on the rounding of a sum.
WorkerOptions tiny_options() {
  WorkerOptions options;
  options.model.vocab_size = 32;
  options.model.hidden_size = 16;
  options.model.num_hidden_layers = 3;
  options.model.max_position_embeddings = 40;
  options.model.initializer_range = 0.3;
  options.model.num_attention_heads = 2;
  options.model.num_key_value_heads = 2;
  options.model.intermediate_size = 24;
  options.model.n_routed_experts = 5;
  options.model.num_experts_per_tok = 2;
  options.model.n_shared_experts = 1;
  options.model.moe_intermediate_size = 8;
  options.model.first_k_dense_replace = 1;
  options.exchange.combine = "slot_order";
  options.with_grad = false;
  return options;
}

std::vector<Tokens> generate_texts(Worker& worker, const GenerateOptions& options,
                                   const std::vector<TextRequest>& requests, GenerateStatistics* statistics = nullptr) {
  std::vector<Tokens> texts(requests.size());
  size_t num_over = 0;
  const GenerateStatistics made = generate(worker, requests, options, [&](size_t text, std::optional<int32_t> token) {
    if (token) texts.at(text).push_back(*token);
    if (!token) ++num_over;
  });
  EXPECT_EQ(num_over, worker.expert_group().rank() == 0 ? requests.size() : 0);
  if (statistics != nullptr) *statistics = made;
  return texts;
}

Tokens generate_on(Communicator world, const WorkerOptions& worker_options, const TextOptions& options,
                   const Tokens& prompt = kPrompt) {
  Worker worker(std::move(world), worker_options);
  worker.store().initialise(5);
  return generate_texts(worker, {.max_new = options.max_new}, {{prompt, options.sampling}}).front();
}

// What one rank makes; every rank of a test computes it for itself.
Tokens expected_tokens(const WorkerOptions& worker_options, const TextOptions& options) {
  Tokens tokens;
  test::on_one_rank([&](Communicator world) { tokens = generate_on(std::move(world), worker_options, options); });
  return tokens;
}

TEST(Generate, IsTheSameOnAnyNumberOfRanks) {
  const TextOptions options = {.max_new = 20, .sampling = {.temperature = 0.8, .top_k = 12, .seed = 9}};
  const Tokens expected = expected_tokens(tiny_options(), options);
  ASSERT_EQ(expected.size(), 20U);
  test::on_ranks([&](Communicator& world) {
    const bool first = world.rank() == 0;
    const Tokens tokens = generate_on(std::move(world), tiny_options(), options);
    if (first) {
      EXPECT_EQ(tokens, expected);
    }
  });
}

TEST(Generate, ReadingAllAgainGivesTheSameTokens) {
  const Tokens expected = expected_tokens(tiny_options(), {.max_new = 8, .sampling = {.temperature = 0.0}});
  Tokens text = kPrompt;
  for (const int32_t token : expected) {
    test::on_one_rank([&](Communicator world) {
      EXPECT_EQ(generate_on(std::move(world), tiny_options(), {.max_new = 1, .sampling = {.temperature = 0.0}}, text),
                Tokens{token});
    });
    text.push_back(token);
  }
}

// Latent attention: prefill and decoding through the absorbed form, against reading all again.
TEST(Generate, LatentAttentionIsTheSameOnAnyNumberOfRanksAndWithoutItsCache) {
  WorkerOptions latent = tiny_options();
  latent.model.model_type = "deepseek_v3";
  latent.model.q_lora_rank = 7;
  latent.model.kv_lora_rank = 6;
  latent.model.qk_nope_head_dim = 5;
  latent.model.qk_rope_head_dim = 4;
  latent.model.v_head_dim = 9;
  latent.model.rope_scaling = {
      .type = "yarn", .factor = 4, .mscale_all_dim = 1, .original_max_position_embeddings = 10};
  const TextOptions options = {.max_new = 12, .sampling = {.temperature = 0.9, .top_p = 0.8, .seed = 3}};
  const Tokens expected = expected_tokens(latent, options);
  test::on_ranks([&](Communicator& world) {
    const bool first = world.rank() == 0;
    const Tokens tokens = generate_on(std::move(world), latent, options);
    if (first) {
      EXPECT_EQ(tokens, expected);
    }
  });
  Tokens text = kPrompt;
  for (const int32_t token : expected_tokens(latent, {.max_new = 6, .sampling = {.temperature = 0.0}})) {
    test::on_one_rank([&](Communicator world) {
      EXPECT_EQ(generate_on(std::move(world), latent, {.max_new = 1, .sampling = {.temperature = 0.0}}, text),
                Tokens{token});
    });
    text.push_back(token);
  }
}

TEST(Generate, EndsAtTheEndTokenOnAllRanks) {
  const TextOptions options = {.max_new = 20, .sampling = {.seed = 4}};
  const Tokens endless = expected_tokens(tiny_options(), options);
  WorkerOptions ending = tiny_options();
  ending.model.eos_token_id = endless[3];
  const auto end = std::find(endless.begin(), endless.end(), endless[3]);
  test::on_ranks([&](Communicator& world) {
    const bool first = world.rank() == 0;
    const Tokens tokens = generate_on(std::move(world), ending, options);
    if (first) {
      EXPECT_EQ(tokens, Tokens(endless.begin(), end));
    }
  });
}

TEST(Generate, EndsAtAnyOfTheEndTokensThatAreGiven) {
  const TextOptions options = {.max_new = 20, .sampling = {.seed = 4}};
  const Tokens endless = expected_tokens(tiny_options(), options);
  WorkerOptions other = tiny_options();
  other.model.eos_token_id = endless[1];
  test::on_one_rank([&](Communicator world) {
    Worker worker(std::move(world), other);
    worker.store().initialise(5);
    const GenerateOptions ends = {.max_new = options.max_new, .end_tokens = Tokens{endless[7], endless[5]}};
    const auto is_end = [&](int32_t token) { return token == endless[5] || token == endless[7]; };
    EXPECT_EQ(generate_texts(worker, ends, {{kPrompt, options.sampling}}).front(),
              Tokens(endless.begin(), std::ranges::find_if(endless, is_end)));
  });
}

// Tokens stand for letters here. The token that completes the string is emitted, and none after it.
TEST(Generate, EndsWithAStopStringOnAllRanks) {
  const TextOptions options = {.max_new = 20, .sampling = {.seed = 4}};
  const Tokens endless = expected_tokens(tiny_options(), options);
  const auto piece = [](int32_t token) { return std::string(1, static_cast<char>('A' + token)); };
  const std::string stop = piece(endless[4]) + piece(endless[5]) + piece(endless[6]);
  test::on_ranks([&](Communicator& world) {
    Worker worker(std::move(world), tiny_options());
    worker.store().initialise(5);
    const GenerateOptions ends = {
        .max_new = options.max_new, .stop_strings = {"never", stop}, .piece = piece, .emits_on_all_ranks = true};
    Tokens tokens;
    generate(worker, {{kPrompt, options.sampling}}, ends, [&](size_t, std::optional<int32_t> token) {
      if (token) tokens.push_back(*token);
    });
    EXPECT_EQ(tokens, Tokens(endless.begin(), endless.begin() + 7));
  });
}

// The same text once more finds what its experts made of the same rows: as much as was looked for the first time.
TEST(Generate, TheCacheOfExpertsChangesNothing) {
  const TextOptions options = {.max_new = 20, .sampling = {.temperature = 0.8, .seed = 9}};
  const Tokens expected = expected_tokens(tiny_options(), options);
  test::on_ranks([&](Communicator& world) {
    Worker worker(std::move(world), tiny_options());
    worker.store().initialise(5);
    ExpertCache cache(1 << 20);
    const GenerateOptions with_cache = {.max_new = options.max_new, .cache = &cache};
    const std::vector<TextRequest> request = {{kPrompt, options.sampling}};
    int64_t looked_for = 0;
    for (const int64_t found : {0, 1}) {
      const Tokens tokens = generate_texts(worker, with_cache, request).front();
      if (worker.expert_group().rank() == 0) {
        EXPECT_EQ(tokens, expected);
      }
      EXPECT_EQ(cache.rows_found(), found * looked_for);
      looked_for = cache.rows_looked_for();
    }
    for (Parameter* parameter : worker.store().parameters()) ++parameter->version;
    const int64_t found_before = cache.rows_found();
    generate_texts(worker, with_cache, request);
    EXPECT_EQ(cache.rows_found(), found_before) << "other weights";
  });
}

// The prompt and all tokens but the last are read once, by two mixture layers.
TEST(Generate, CountsTokensWhoseBestExpertIsDead) {
  constexpr int64_t kRead = 2 * (6 + 19);
  const auto routed_on = [&](Communicator world, const std::string& dead) {
    WorkerOptions options = tiny_options();
    set_key(options.model, "dead_experts", dead);
    Worker worker(std::move(world), options);
    worker.store().initialise(5);
    GenerateStatistics statistics;
    generate_texts(worker, {.max_new = 20}, {{kPrompt, {.temperature = 0.0}}}, &statistics);
    EXPECT_EQ(statistics.routed.tokens, kRead);
    return statistics.routed.rerouted;
  };
  int64_t expected = 0;
  test::on_one_rank([&](Communicator world) { expected = routed_on(std::move(world), "0,3"); });
  EXPECT_GT(expected, 0);
  EXPECT_LT(expected, kRead);
  test::on_ranks([&](Communicator& world) {
    EXPECT_EQ(routed_on(world.duplicate("some"), "0,3"), expected);
    EXPECT_EQ(routed_on(world.duplicate("none"), ""), 0);
    EXPECT_EQ(routed_on(world.duplicate("all"), "0,1,2,3,4"), kRead);
  });
}

TEST(Generate, RefusesWhatTheModelCannotHold) {
  test::on_one_rank([&](Communicator world) {
    const std::string message =
        test::message_of([&] { generate_on(std::move(world), tiny_options(), {.max_new = 35, .sampling = {}}); });
    test::expect_message(message, {"35 new tokens after a prompt of 6", "40"});
  });
}

// Task 1 from the first byte 9 on: prefers other experts so much that the text is another one. What was made counts as what
// was read: a token has the task of the text up to it, whether it stood in the prompt or was made.
TEST(Generate, TokensHaveTheTaskOfTheTextUpToThem) {
  WorkerOptions options = tiny_options();
  options.model.router.bias.expert_task = {1, 1, 0, 0, 0};
  options.model.router.bias.task = 10.0;
  options.model.routed_scaling_factor = 10.0;  // so that experts decide
  TaskOptions tasks;
  tasks.keywords[1] = {"\x09"};
  tasks.priority = {TaskType::coding};
  const TaskLabeller labeller(tasks, std::make_shared<ByteTokenizer>(), -1);
  const auto greedy = [&](const Tokens& prompt, int64_t max_new, const TaskLabeller* with, int32_t task = kNoTask) {
    Tokens tokens;
    test::on_one_rank([&](Communicator world) {
      Worker worker(std::move(world), options);
      worker.store().initialise(5);
      tokens = generate_texts(worker, {.max_new = max_new, .labeller = with},
                              {{prompt, {.temperature = 0.0}, {.task = task}}})
                   .front();
    });
    return tokens;
  };
  const Tokens made = greedy(kPrompt, 10, &labeller);
  EXPECT_NE(made, greedy(kPrompt, 10, nullptr));
  EXPECT_NE(made, greedy(kPrompt, 10, nullptr, 1)) << "the tokens before byte 9 have no task";
  Tokens text = kPrompt;
  for (const int32_t token : made) {
    EXPECT_EQ(greedy(text, 1, &labeller), Tokens{token});
    text.push_back(token);
  }
}

// A model of top-k 2 that has room for 4: a text that visits 2 is what it was, beside one that visits 4.
TEST(Generate, EachTextVisitsAsManyExpertsAsItAsksFor) {
  const auto texts_of = [](int64_t top_k, const std::vector<int64_t>& experts) {
    WorkerOptions options = tiny_options();
    options.model.num_experts_per_tok = top_k;
    options.model.norm_topk_prob = true;
    options.model.routed_scaling_factor = 10.0;
    std::vector<TextRequest> requests;
    for (const int64_t num : experts) requests.push_back({kPrompt, {.temperature = 0.0}, {.num_experts = num}});
    std::vector<Tokens> texts;
    test::on_one_rank([&](Communicator world) {
      Worker worker(std::move(world), options);
      worker.store().initialise(5);
      texts = generate_texts(worker, {.max_new = 12}, requests);
    });
    return texts;
  };
  const std::vector<Tokens> together = texts_of(4, {2, 4, 1});
  EXPECT_EQ(together[0], texts_of(2, {0}).front());
  EXPECT_EQ(together[1], texts_of(4, {0}).front());
  EXPECT_EQ(together[2], texts_of(2, {1}).front());
  EXPECT_NE(together[0], together[1]);
  EXPECT_NE(together[0], together[2]);
}

constexpr double kLongPassMs = 1e6;  // so long that every better placement pays

// Of each mixture layer of tiny_options() with 16 experts: expert e gets more than e + 1, with the favourite in front.
std::map<int, std::vector<int64_t>> skewed_slots(int favourite) {
  std::vector<int64_t> slots(16);
  for (size_t i = 0; i < slots.size(); ++i) slots[(i + static_cast<size_t>(favourite)) % 16] = int64_t{1} << (16 - i);
  return {{1, slots}, {2, slots}};
}

TEST(Generate, ExpertsMoveWhileTheTextsStayTheSame) {
  WorkerOptions worker_options = tiny_options();
  worker_options.model.n_routed_experts = 16;
  std::vector<TextRequest> requests;
  for (int32_t i = 0; i < 6; ++i) requests.push_back({{i, 14, 15}, {.temperature = 0.8, .seed = 7}});
  test::on_ranks(
      [&](Communicator& world) {
        Worker worker(world.duplicate("generation"), worker_options);
        worker.store().initialise(5);
        const auto texts_of = [&](PassRebalancer* rebalancer, GenerateStatistics& statistics) {
          std::vector<Tokens> texts(requests.size());
          const GenerateOptions options = {.max_new = 32,
                                           .batch = 4,
                                           .emits_on_all_ranks = true,
                                           .log_probabilities = true,
                                           .rebalancer = rebalancer};
          statistics = generate(worker, requests, options, [&](size_t text, std::optional<int32_t> token) {
            if (!token) return;
            texts[text].push_back(*token);
            if (rebalancer == nullptr || text != 0 || texts[text].size() % 8 != 0) return;
            rebalancer->after_pass(kLongPassMs, skewed_slots(static_cast<int>(texts[text].size())), 100);
          });
          return texts;
        };
        GenerateStatistics stays;
        GenerateStatistics moves;
        const std::vector<Tokens> expected = texts_of(nullptr, stays);
        PassRebalancer rebalancer(worker, /*every=*/1);
        EXPECT_EQ(texts_of(&rebalancer, moves), expected);
        EXPECT_GE(rebalancer.moves().times, 2);
        EXPECT_EQ(moves.log_probabilities, stays.log_probabilities);
      },
      {2, 4});
}

TEST(PassRebalancer, MovesWhereItPays) {
  WorkerOptions worker_options = tiny_options();
  worker_options.model.n_routed_experts = 16;
  test::on_ranks(
      [&](Communicator& world) {
        Worker worker(world.duplicate("generation"), worker_options);
        const ExpertMaps before = worker.expert_maps();
        const auto slots = world.rank() == 1 ? skewed_slots(0) : std::map<int, std::vector<int64_t>>{};
        PassRebalancer rebalancer(worker, /*every=*/2);
        for (int pass = 0; pass < 2; ++pass) rebalancer.after_pass(/*pass_ms=*/0.0, slots, /*passes_left=*/100);
        EXPECT_EQ(rebalancer.moves().refused, 1);
        for (int pass = 0; pass < 2; ++pass) rebalancer.after_pass(kLongPassMs, slots, /*passes_left=*/0);
        EXPECT_EQ(rebalancer.moves().refused, 2);
        rebalancer.after_pass(kLongPassMs, slots, 100);
        EXPECT_EQ(worker.expert_maps(), before);
        rebalancer.after_pass(kLongPassMs, slots, 100);
        const PassRebalancer::Moves& moves = rebalancer.moves();
        EXPECT_EQ(moves.times, 1);
        EXPECT_GT(moves.bytes, 0);
        // Each rank had the heaviest neighbours; the heaviest expert alone is more than half of all slots.
        EXPECT_GT(moves.before, moves.after);
        EXPECT_NE(worker.expert_maps(), before);
        EXPECT_THAT(describe(moves), testing::HasSubstr("experts  moved 1 times, "));
      },
      {2, 4});
}

TEST(PassRebalancer, SaysWhyNothingMoves) {
  test::on_one_rank([&](Communicator world) {
    Worker worker(std::move(world), tiny_options());
    PassRebalancer rebalancer(worker, 1);
    EXPECT_EQ(rebalancer.note(), "each rank holds all experts");
    rebalancer.after_pass(kLongPassMs, skewed_slots(0), 100);
    EXPECT_EQ(rebalancer.moves().times, 0);
  });
}

}  // namespace
}  // namespace cadre::generate_test
