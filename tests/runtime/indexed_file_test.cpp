// SPDX-License-Identifier: Apache-2.0
// Token files of Megatron-LM against bytes of a writer in NumPy (ndarray.tobytes of each array of the layout), and cadre tokenize
// against the documents one by one.
#include "runtime/data/indexed_file.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/data/dataset.hpp"
#include "runtime/data/documents.hpp"
#include "runtime/data/tokenize.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"

namespace cadre::indexed_file_test {
namespace {

using test::expect_message;
using test::message_of;
using test::read_file;
using test::write_file;

// uint16, documents {104 105 256} and {97 98 99 10 256} of a sequence each.
constexpr const char* kSmallIds = "6800690000016100620063000a000001";
constexpr const char* kSmallIndex =
    "4d4d494449445800000100000000000000080200000000000000030000000000000003000000050000000000000000000000"
    "0600000000000000000000000000000001000000000000000200000000000000";
// int32, the documents {5 70000} {7} and {8 9 10}.
constexpr const char* kWideIds = "05000000701101000700000008000000090000000a000000";
constexpr const char* kWideIndex =
    "4d4d494449445800000100000000000000040300000000000000030000000000000002000000010000000300000000000000"
    "0000000008000000000000000c00000000000000000000000000000002000000000000000300000000000000";

std::string bytes_of(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return bytes;
}

std::vector<int32_t> all_of(const TokenSource& source) {
  std::vector<int32_t> tokens(static_cast<size_t>(source.num_tokens()));
  source.read(0, tokens);
  return tokens;
}

class IndexedFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) / fmt::format("cadre_{}{}", test->name(), getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    write_file(path(name), bytes);
    return path(name);
  }
  std::string write_wide(std::string index) const {
    write("wide.bin", bytes_of(kWideIds));
    write("wide.idx", index);
    return path("wide");
  }
  std::string refusal(const std::string& index) const {
    return message_of([&] { open_indexed_files(*find_indexed_files(write_wide(index)), 100000); });
  }

  std::filesystem::path folder_;
};

TEST_F(IndexedFileTest, reads_what_numpy_wrote_by_any_of_its_names) {
  const std::string prefix = write_wide(bytes_of(kWideIndex));
  for (const char* extension : {"", ".bin", ".idx"}) {
    EXPECT_TRUE(holds_tokens(prefix + extension));
    const OpenedTokens opened = open_tokens(prefix + extension, kByteTokenizer, 70001);
    EXPECT_EQ(all_of(opened.tokens), (std::vector<int32_t>{5, 70000, 7, 8, 9, 10}));
    EXPECT_EQ(opened.summary.bytes, 24 + 34 + 12 * 3 + 8 * 3);
  }
  expect_message(message_of([&] { all_of(open_tokens(prefix, kByteTokenizer, 70000).tokens); }),
                 {"token 1 has id 70000", "model.vocab_size = 70000"});
  write("small.bin", bytes_of(kSmallIds));
  write("small.idx", bytes_of(kSmallIndex));
  EXPECT_EQ(all_of(open_tokens(path("small"), kByteTokenizer, 257).tokens),
            (std::vector<int32_t>{104, 105, 256, 97, 98, 99, 10, 256}));
}

TEST_F(IndexedFileTest, refuses_what_is_damaged) {
  const std::string good = bytes_of(kWideIndex);
  const auto with = [&](size_t at, char byte) {
    std::string bad = good;
    bad[at] = byte;
    return bad;
  };
  EXPECT_FALSE(find_indexed_files(write_wide(with(0, 'm'))));
  EXPECT_FALSE(find_indexed_files(path("nothing")));
  expect_message(refusal(good.substr(0, 20)), {"wide.idx: 20 bytes", "34 of a header"});
  expect_message(refusal(with(9, 2)), {"version = 2, allowed: 1"});
  expect_message(refusal(with(17, 6)), {"type of ids = 6", "4 (int32) or 8 (uint16)"});
  expect_message(refusal(with(18, 4)), {"do not fit 4 sequences and 2 documents"});
  expect_message(refusal(with(25, 1)), {"do not fit"});
  expect_message(refusal(good + 'x'), {"do not fit 3 sequences"});
  expect_message(refusal(with(34 + 4, 2)),
                 {"sequence 1 has 2 tokens from byte 8 on, and the next one begins at byte 12"});
  expect_message(refusal(with(34 + 12, 4)), {"sequence 0 has 2 tokens from byte 4 on"});
  write_wide(good);
  write("wide.bin", bytes_of(kWideIds).substr(4));
  expect_message(message_of([&] { open_indexed_files(*find_indexed_files(path("wide")), 100000); }),
                 {"sequence 2 has 3 tokens", "the next one begins at byte 20"});
  std::filesystem::remove(path("wide.bin"));
  expect_message(message_of([&] { open_indexed_files(*find_indexed_files(path("wide")), 100000); }),
                 {"wide.bin: cannot open this file"});
}

TEST_F(IndexedFileTest, masks_documents_only_where_a_token_ends_them) {
  write("small.bin", bytes_of(kSmallIds));
  write("small.idx", bytes_of(kSmallIndex));
  DataConfig config;
  config.path = path("small");
  config.mask_documents = true;
  config.sequence_length = 2;
  config.validation_fraction = 0.0;
  ModelConfig model;
  model.vocab_size = 257;
  model.eos_token_id = 256;
  EXPECT_EQ(open_dataset(config, model).train.front().document_end, 256);
  model.eos_token_id = 10;
  expect_message(message_of([&] { open_dataset(config, model); }),
                 {"small.bin, whose first document ends with token 256", "model.eos_token_id = 10", "--append-eod"});
}

TEST_F(IndexedFileTest, tokenize_writes_what_numpy_writes) {
  const ByteTokenizer tokenizer;
  const TokenizeSummary summary =
      tokenize_files({.paths = {write("a.txt", "hi"), write("empty.txt", ""), write("b.txt", "abc\n")},
                      .out = path("out"),
                      .end_of_text = 256},
                     tokenizer);
  EXPECT_EQ(read_file(path("out.bin")), bytes_of(kSmallIds));
  EXPECT_EQ(read_file(path("out.idx")), bytes_of(kSmallIndex));
  EXPECT_EQ(summary.documents, 2);
  EXPECT_EQ(summary.empty, 1);
  EXPECT_EQ(summary.tokens, 8);
  EXPECT_EQ(summary.bytes, 6);
  EXPECT_EQ(summary.id_bytes, 2);
  expect_message(message_of([&] { tokenize_files({.paths = {path("a.txt")}, .out = path("out")}, tokenizer); }),
                 {"out.bin exists already"});
  tokenize_files({.paths = {path("a.txt")}, .out = path("wide"), .end_of_text = 65536}, tokenizer);
  EXPECT_EQ(read_file(path("wide.bin")), bytes_of("680000006900000000000100"));
}

// Documents of many lengths, some of several batches, in files and in lines: any number of threads writes them in their order.
TEST_F(IndexedFileTest, threads_change_no_byte) {
  const ByteTokenizer tokenizer;
  std::filesystem::create_directories(path("folder/below"));
  std::string lines;
  std::vector<int32_t> expected;
  const auto add = [&](const std::string& text) {
    for (const char byte : text) expected.push_back(static_cast<uint8_t>(byte));
    expected.push_back(256);
  };
  for (int i = 0; i < 3000; ++i) {
    const std::string text = fmt::format("{} \\u00e9 {}", i, std::string(static_cast<size_t>(i % 1000 + 300), 'x'));
    lines += fmt::format(R"({{"id": {}, "content": "{}"}})", i, text) + (i % 7 == 0 ? "\r\n\n" : "\n");
    add(fmt::format("{} \xc3\xa9 {}", i, std::string(static_cast<size_t>(i % 1000 + 300), 'x')));
  }
  write("folder/a.jsonl", lines);
  const std::string large(3 << 20, 'y');
  write("folder/below/b.txt", large);
  write("folder/below/c.bin", std::string("a\0b", 3));
  add(large);
  std::string index;
  for (const int threads : {1, 2, 5}) {
    const std::string out = path(fmt::format("out{}", threads));
    const TokenizeSummary summary = tokenize_files(
        {.paths = {path("folder")}, .out = out, .text_field = "content", .threads = threads, .end_of_text = 256},
        tokenizer);
    EXPECT_EQ(summary.documents, 3001);
    ASSERT_EQ(summary.left_out.size(), 1U);
    EXPECT_EQ(summary.left_out.front().path, "below/c.bin");
    EXPECT_EQ(all_of(open_tokens(out, kByteTokenizer, 257).tokens), expected) << threads;
    if (index.empty()) index = read_file(out + ".idx");
    EXPECT_EQ(read_file(out + ".idx"), index) << threads;
  }
}

TEST_F(IndexedFileTest, an_error_leaves_no_file) {
  const ByteTokenizer tokenizer;
  const auto refused = [&](const std::string& file) {
    const std::string message = message_of([&] {
      tokenize_files({.paths = {path("good.txt"), file}, .out = path("out"), .threads = 3}, tokenizer);
    });
    for (const char* name : {"out.bin", "out.idx", "out.bin.unfinished", "out.idx.unfinished"}) {
      EXPECT_FALSE(std::filesystem::exists(path(name))) << name;
    }
    return message;
  };
  write("good.txt", "good");
  expect_message(refused(write("no.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}\n")),
                 {"no.jsonl: line 2: text is a JSON number"});
  expect_message(refused(write("no.jsonl", "\n{\"other\": \"a\"}\n")), {"no.jsonl: line 2: text is missing"});
  expect_message(refused(write("no.jsonl", "{\"text\": \"a\n")), {"no.jsonl: line 1: not a JSON object"});
  expect_message(refused(write("zero.txt", std::string("a\0", 2))), {"zero.txt: holds a zero byte"});
  expect_message(refused(path("nothing")), {"nothing does not exist"});
  expect_message(message_of([&] { tokenize_files({.paths = {write("e.txt", "")}, .out = path("out")}, tokenizer); }),
                 {"would hold no document"});
}

// Training on JSON Lines has the tokens of a folder with a file a document.
TEST_F(IndexedFileTest, json_lines_are_documents) {
  const std::string file = write("a.jsonl", "{\"body\": \"one\"}\n\n{\"body\": \"\"}\n{\"body\": \"t\\u0077o\"}\n");
  const OpenedTokens opened = open_tokens(file, kByteTokenizer, 256, -1, "body");
  EXPECT_EQ(decode_bytes(all_of(opened.tokens)), "one\ntwo");
  EXPECT_EQ(opened.summary.files, 1);
  EXPECT_EQ(all_of(open_tokens(file, kByteTokenizer, 257, 256, "body").tokens),
            (std::vector<int32_t>{'o', 'n', 'e', 256, 't', 'w', 'o'}));
  DataConfig config;
  config.path = file;
  config.format = "json_lines";
  config.text_field = "body";
  config.sequence_length = 2;
  config.validation_fraction = 0.0;
  ModelConfig model;
  model.vocab_size = 256;
  EXPECT_EQ(num_tokens(open_dataset(config, model).train), 7);
  expect_message(message_of([&] { open_tokens(file, kByteTokenizer, 256, -1, "text"); }),
                 {"a.jsonl: line 1: text is missing", "data.text_field"});
}

}  // namespace
}  // namespace cadre::indexed_file_test
