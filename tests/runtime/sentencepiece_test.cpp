// SPDX-License-Identifier: Apache-2.0
// Tokenizers of SentencePiece, of models that the library trains here: its own tokens, texts back as they were, pieces
// that can be shown one after the other, and files that are no model. Without the library: that this is said.
#include "runtime/tokenizer/sentencepiece.hpp"

#include <gtest/gtest.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "comm/base/random.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "runtime/tokenizer/utf8.hpp"
#include "tests/support/files.hpp"

#ifdef CADRE_TEST_SENTENCEPIECE
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#endif

namespace cadre::sentencepiece_test {
namespace {

#ifdef CADRE_TEST_SENTENCEPIECE

class Sentences final : public sentencepiece::SentenceIterator {
 public:
  bool done() const override { return next_ == all_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return all_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> all_ = {"the expert moves the token to another rank",
                                   "another rank moves it back to the expert",
                                   "a token is a word or a part of a word",
                                   "专家把词元送给专家",
                                   "词元是词的一部分",
                                   "the words of the experts, and the ranks of the words"};
  size_t next_ = 0;
};

// For text as it is, with a token for each byte that no piece has: how models of language use the library.
std::string train_model(const std::string& kind, const std::string& normalization = "identity") {
  const std::unordered_map<std::string, std::string> options = {{"model_type", kind},
                                                                {"vocab_size", "330"},
                                                                {"byte_fallback", "true"},
                                                                {"hard_vocab_limit", "false"},
                                                                {"normalization_rule_name", normalization},
                                                                {"remove_extra_whitespaces", "false"},
                                                                {"user_defined_symbols", "<think>"},
                                                                {"minloglevel", "1"}};
  Sentences sentences;
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &model);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return model;
}

class SentencePieceTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SentencePieceTest, has_the_tokens_of_the_library) {
  const std::string model = train_model(GetParam());
  const auto tokenizer = make_sentencepiece(model);
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
  EXPECT_EQ(tokenizer->vocab_size(), library.GetPieceSize());
  EXPECT_GT(tokenizer->vocab_size(), 256);
  const std::vector<int> tokens = library.EncodeAsIds("the expert's token 专家 😀");
  EXPECT_EQ(tokenizer->encode("the expert's token 专家 😀"), std::vector<int32_t>(tokens.begin(), tokens.end()));
  EXPECT_EQ(tokenizer->find("<think>"), library.PieceToId("<think>"));
  EXPECT_EQ(tokenizer->find("<s>"), library.bos_id());
  EXPECT_EQ(tokenizer->find("no such piece"), std::nullopt);
}

TEST_P(SentencePieceTest, gives_texts_back) {
  const auto tokenizer = make_sentencepiece(train_model(GetParam()));
  for (const std::string text : {"", "the expert", "the  expert moves\n\ttwo  lines ", "专家把词元送给 experts",
                                 "😀👍🏽 naïve", "a<think>b", "<0x41>"}) {
    const std::vector<int32_t> tokens = tokenizer->encode(text);
    EXPECT_EQ(tokenizer->decode(tokens), text);
    // In a stream a text begins where another one ended, so the space before its first word is shown.
    Utf8Stream stream;
    std::string shown;
    for (const int32_t token : tokens) shown += stream.put(tokenizer->piece(token));
    EXPECT_EQ(shown + stream.finish(), text.empty() ? "" : " " + text);
  }
  // What is no UTF-8 becomes U+FFFD on its way in.
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\xFFz")), "a\uFFFDz");
  const std::vector<int32_t> foreign = {-1, 1 << 20, *tokenizer->find("<s>")};
  EXPECT_EQ(tokenizer->decode(foreign), "");
  for (const int32_t token : foreign) EXPECT_EQ(tokenizer->piece(token), "");
}

INSTANTIATE_TEST_SUITE_P(Models, SentencePieceTest, ::testing::Values("bpe", "unigram"));

TEST(SentencePieceFiles, are_preferred_and_refused_when_damaged) {
  const test::TemporaryDirectory folder;
  const std::string model = train_model("bpe");
  test::write_file(folder / "tokenizer.model", model);
  test::write_file(folder / "tokenizer.json", "{}");
  test::write_file(folder / "tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<s>"})");
  const std::string where = folder.path().string();
  const auto tokenizer = open_tokenizer(where);
  EXPECT_EQ(tokenizer->vocab_size(), make_sentencepiece(model)->vocab_size());
  EXPECT_EQ(tokenizer->prompt_prefix(), std::vector<int32_t>{*tokenizer->find("<s>")});
  EXPECT_EQ(read_tokenizer_files(where).count("tokenizer.json"), 1) << "it goes into checkpoints too";

  for (const std::string& content : {std::string("no model"), model.substr(0, model.size() / 2), std::string(100, '\0'),
                                     std::string("\x0a\x00", 2), model.substr(3)}) {
    test::write_file(folder / "tokenizer.model", content);
    const std::string text = test::error_of([&] { open_tokenizer(where); });
    EXPECT_NE(text.find(where), std::string::npos) << text;
    EXPECT_NE(text.find("SentencePiece"), std::string::npos) << text;
    EXPECT_NE(text.find("(hint: "), std::string::npos) << text;
  }
}

// What transformers 5.24 makes of each with AutoTokenizer, as pieces one after the other: which parts of a text get a
// space in front, and which space of the text is that space.
TEST(SentencePieceRules, put_spaces_where_transformers_puts_them) {
  struct Case {
    const char* config;
    const char* text;
    const char* pieces;
  };
  const std::vector<Case> cases = {
      {"{}", "the<s>rank", "▁the<s>▁rank"},
      {"{}", " the<A> rank<B>", "▁▁the<A>▁▁rank<B>"},
      {R"({"tokenizer_class": "LlamaTokenizer"})", "the<s>rank</s> rank", "▁the<s>rank</s>▁rank"},
      {R"({"tokenizer_class": "LlamaTokenizer"})", " the<A>rank<B>", "▁the<A>rank<B>"},
      {R"({"tokenizer_class": "LlamaTokenizer"})", "<A>rank", "<A>rank"},
      {R"({"tokenizer_class": "LlamaTokenizer", "legacy": true})", "the<A>rank<s> the", "▁the<A>▁rank<s>▁the"},
      {R"({"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": false})", "the<A> rank", "the<A>▁rank"},
  };
  const std::string model = train_model("bpe");
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
  const int32_t next = library.GetPieceSize();
  for (const auto& [config, text, pieces] : cases) {
    SCOPED_TRACE(std::string(config) + " " + text);
    const auto tokenizer = make_tokenizer(
        {{kTokenizerModelFile, model},
         {kTokenizerConfigFile, config},
         {kAddedTokensFile, "{\"<A>\": " + std::to_string(next) + ", \"<B>\": " + std::to_string(next + 1) + "}"}},
        "x");
    EXPECT_EQ(tokenizer->vocab_size(), next + 2);
    EXPECT_EQ(tokenizer->find("<B>"), next + 1);
    std::string found;
    for (const int32_t token : tokenizer->encode(text)) {
      found += token < next ? library.IdToPiece(token) : tokenizer->piece(token);
    }
    EXPECT_EQ(found, pieces);
  }
}

TEST(SentencePieceRules, are_refused_where_transformers_would_make_other_tokens) {
  const std::string model = train_model("bpe");
  const auto refusal = [&](const std::string& bytes, const char* config, const char* added = "{}") {
    return test::error_of([&] {
      make_tokenizer({{kTokenizerModelFile, bytes}, {kTokenizerConfigFile, config}, {kAddedTokensFile, added}}, "x")
          ->encode("two  words\n");
    });
  };
  const char* llama = R"({"tokenizer_class": "LlamaTokenizer"})";
  const auto expect = [](const std::string& text, const char* words) {
    EXPECT_NE(text.find(words), std::string::npos) << text;
  };
  expect(refusal(model, R"({"tokenizer_class": "T5Tokenizer"})"), "tokenizer_class = \"T5Tokenizer\", allowed");
  expect(refusal(train_model("unigram"), llama), "that is no BPE");
  expect(refusal(train_model("bpe", "nmt_nfkc"), llama), "changes the characters of \"two  words");
  expect(refusal(model, llama, R"({"<A>": 9999})"), "the added token \"<A>\" has the id 9999, allowed: ");
  expect(refusal(model, llama, R"({"<s>": 9999})"), "the added token \"<s>\" has the id 9999, allowed: 1");
  expect(refusal(model, llama, R"({"<A>": 1e99})"), "the id of \"<A>\" is 1e+99");
  expect(refusal(model, llama, "[]"), "added_tokens.json is array, allowed: an object");
  expect(refusal(model, R"({"added_tokens_decoder": {"x": {"content": "<A>"}}})"), "added_tokens_decoder: an id is");
  expect(refusal(model, R"({"added_tokens_decoder": {"330": {"content": 3}}})"),
         "added_tokens_decoder.content is number");
  const std::string next = std::to_string(make_sentencepiece(model)->vocab_size());
  const std::string normalized = R"({"added_tokens_decoder": {")" + next + R"(": {"content": "<A>"}}})";
  expect(refusal(model, normalized.c_str()), "is normalized, allowed: only with a LlamaTokenizer");
}

// The library follows places in memory that a character map names, wherever they lead.
TEST(SentencePieceFiles, with_damaged_character_maps_are_refused) {
  const std::string model = train_model("bpe", "nmt_nfkc");
  EXPECT_EQ(make_sentencepiece(model)->decode(make_sentencepiece(model)->encode("\uFF21 token")), "A token");
  const size_t map = model.find("nmt_nfkc") + 32;
  const Random random(5, "damage", 0);
  for (uint64_t i = 0; i < 20; ++i) {
    std::string damaged = model;
    for (uint64_t j = 0; j < 1000; ++j) {
      damaged[map + random.below(200'000, 2000 * i + 2 * j)] =
          static_cast<char>(random.below(256, 2000 * i + 2 * j + 1));
    }
    EXPECT_NE(test::error_of([&] { make_sentencepiece(damaged); }).find("is damaged"), std::string::npos);
  }
}

#else

TEST(SentencePiece, is_refused_where_it_is_not_built_in) {
  EXPECT_FALSE(has_sentencepiece());
  const test::TemporaryDirectory folder;
  test::write_file(folder / "tokenizer.model", "a model");
  const std::string text = test::error_of([&] { open_tokenizer(folder.path().string()); });
  EXPECT_NE(text.find("a tokenizer of SentencePiece, which is not built in"), std::string::npos) << text;
  EXPECT_NE(text.find("libsentencepiece-dev"), std::string::npos) << text;
  // A tokenizer.json beside it is taken then.
  test::write_file(folder / "tokenizer.json", "{}");
  EXPECT_EQ(read_tokenizer_files(folder.path().string()).count("tokenizer.json"), 1);
}

#endif

}  // namespace
}  // namespace cadre::sentencepiece_test
