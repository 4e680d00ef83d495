// SPDX-License-Identifier: Apache-2.0
// Text and token files, mixtures of them, and the split.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "runtime/data/dataset.hpp"
#include "runtime/data/documents.hpp"
#include "runtime/data/order.hpp"
#include "runtime/data/token_source.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/messages.hpp"

namespace cadre::data_test {
namespace {

using test::expect_message;
using test::message_of;

namespace fs = std::filesystem;

// A folder that is gone after the test.
class DataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / (std::string("cadre_data_") + test->name() + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& bytes) {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }

  template <class Id>
  std::string write_tokens(const std::string& name, int32_t magic, int32_t version, int32_t num_tokens,
                           const std::vector<Id>& ids) {
    std::vector<int32_t> header(256, 0);
    header[0] = magic;
    header[1] = version;
    header[2] = num_tokens;
    std::string bytes(reinterpret_cast<const char*>(header.data()), 1024);
    bytes.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(Id));
    return write(name, bytes);
  }

  fs::path folder_;
};

std::vector<int32_t> read_all(const TokenSource& source) {
  std::vector<int32_t> tokens(static_cast<size_t>(source.num_tokens()), -1);
  source.read(0, tokens);
  return tokens;
}

std::string read_text(const fs::path& path) { return read_documents(path.string(), "\n").text; }

TEST_F(DataTest, ReadsAFolderInPathOrder) {
  write("b.txt", "second");
  write("a.txt", "first");
  write("b/deep/c.md", "third\n");
  write("m.dat", "data");
  write("z.txt", "last");
  // '.' sorts before '/': b.txt before b/deep/c.md.
  const Documents documents = read_documents(folder_.string(), "\n");
  EXPECT_EQ(documents.text, "first\nsecond\nthird\n\ndata\nlast");
  EXPECT_EQ(documents.document(2), "third\n");
  EXPECT_EQ(documents.document(4), "last");
  EXPECT_EQ(documents.num_bytes(), 25U);
  EXPECT_EQ(documents.left_out, std::vector<LeftOut>());
}

TEST_F(DataTest, ReadsThroughLinksAndNamesWhatItLeavesOut) {
  write("d/a.txt", "first");
  write("d/b/c.txt", "second");
  write("d/empty.txt", "");
  write("d/image.bin", std::string("x\0y", 3));
  write("blobs/1", "third");
  write("more/x.txt", "fourth");
  fs::create_symlink(folder_ / "blobs/1", folder_ / "d/link.txt");
  fs::create_symlink(folder_ / "blobs/1", folder_ / "d/other.txt");
  fs::create_symlink("a.txt", folder_ / "d/0.txt");  // sorts before the file itself
  fs::create_directory_symlink(folder_ / "more", folder_ / "d/more");
  fs::create_directory_symlink(folder_ / "d", folder_ / "more/around");
  fs::create_directory_symlink(".", folder_ / "d/self");
  ASSERT_EQ(mkfifo((folder_ / "d/fifo").c_str(), 0600), 0);
  const Documents documents = read_documents((folder_ / "d").string(), "|");
  EXPECT_EQ(documents.text, "first|second|third|fourth");
  const std::vector<LeftOut> expected = {{"0.txt", "a link to a file that is read once"},
                                         {"empty.txt", "empty"},
                                         {"fifo", "a FIFO"},
                                         {"image.bin", "holds a zero byte, so it is not text"},
                                         {"more/around", "a link to a folder that is read once"},
                                         {"other.txt", "a link to a file that is read once"},
                                         {"self", "a link to a folder that is read once"}};
  EXPECT_EQ(documents.left_out, expected);
  EXPECT_EQ(read_text(folder_ / "d/link.txt"), "third");  // asked for by name
  EXPECT_EQ(read_text(folder_ / "d/more"), "first\nsecond\nthird\nfourth");
}

TEST_F(DataTest, SaysWhatItRead) {
  write("a", "12345");
  write("b", "678");
  write("z", std::string(1, '\0'));
  for (int i = 0; i < 10; ++i) write("empty" + std::to_string(i), "");
  DataConfig config;
  config.path = folder_.string();
  const OpenedTokens opened = open_tokens(config.path, config.tokenizer, 256);
  EXPECT_EQ(describe(opened.summary),
            config.path +
                ": 2 files, 8 bytes, 9 tokens, a newline between documents; left out: empty0, empty1, empty2, empty3, "
                "empty4, "
                "empty5, empty6, empty7 and 2 more (empty), z (holds a zero byte, so it is not text)");
  config.path = (folder_ / "a").string();
  EXPECT_EQ(describe(open_tokens(config.path, config.tokenizer, 256).summary),
            config.path + ": 1 file, 5 bytes, 5 tokens");
  config.path = write_tokens<uint16_t>("gpt2.bin", 20240520, 1, 3, {5, 6, 0});
  EXPECT_EQ(describe(open_tokens(config.path, config.tokenizer, 50257).summary),
            config.path + ": 1 file, 1030 bytes, 3 tokens");
  // What is left out may be why it is too little.
  config.path = folder_.string();
  fs::remove(folder_ / "gpt2.bin");
  expect_message(message_of([&] { open_dataset(config, ModelConfig()); }), {"9 tokens for training", "z (holds a"});
}

// Bytes have no token of their own that ends a text; model.eos_token_id may name a byte, or an id behind them.
TEST_F(DataTest, EndsDocumentsByTheEndToken) {
  write("a", "ab");
  write("b", "c");
  write("c", "\n");
  DataConfig config;
  config.path = folder_.string();
  const auto tokens_with = [&](int64_t end) {
    return read_all(open_tokens(config.path, config.tokenizer, 320, end).tokens);
  };
  EXPECT_EQ(tokens_with(-1), (std::vector<int32_t>{'a', 'b', '\n', 'c', '\n', '\n'}));
  EXPECT_EQ(tokens_with(0), (std::vector<int32_t>{'a', 'b', 0, 'c', 0, '\n'}));
  EXPECT_EQ(tokens_with(256), (std::vector<int32_t>{'a', 'b', 256, 'c', 256, '\n'}));
  EXPECT_EQ(open_tokens(config.path, config.tokenizer, 320, 256).summary.between_documents, "end-of-text token 256");
  config.path = (folder_ / "a").string();
  EXPECT_EQ(tokens_with(256), (std::vector<int32_t>{'a', 'b'}));
}

// A byte-level tokenizer of a, b, c, newline, ab and <end>.
class TokenizerDataTest : public DataTest {
 protected:
  std::string write_tokenizer(const std::string& config) {
    write("tokenizer/tokenizer.json",
          R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
              "added_tokens": [{"id": 5, "content": "<end>", "special": true}],
              "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "\u010a": 3, "ab": 4}, "merges": ["a b"]}})");
    if (!config.empty()) write("tokenizer/tokenizer_config.json", config);
    return (folder_ / "tokenizer").string();
  }
};

TEST_F(TokenizerDataTest, TakesTheEndTokenOfTheTokenizer) {
  write("text/1", "ca");
  write("text/2", "bc");
  RunConfig config;
  config.data.path = (folder_ / "text").string();
  config.data.tokenizer = write_tokenizer("");
  config.model.vocab_size = 6;
  const auto tokens = [&] {
    const RunConfig run = with_end_of_text(config);
    return read_all(open_tokens(run.data.path, run.data.tokenizer, 6, run.model.eos_token_id).tokens);
  };
  EXPECT_EQ(tokens(), (std::vector<int32_t>{2, 0, 3, 1, 2}));  // it names none
  write_tokenizer(R"({"eos_token": {"content": "<end>"}})");
  EXPECT_EQ(tokens(), (std::vector<int32_t>{2, 0, 5, 1, 2}));
  EXPECT_EQ(with_end_of_text(config).model.eos_token_id, 5);
  write_tokenizer(R"({"eos_token": "<end>"})");
  EXPECT_EQ(with_end_of_text(config).model.eos_token_id, 5);
  config.model.eos_token_id = 0;  // the configuration decides
  EXPECT_EQ(tokens(), (std::vector<int32_t>{2, 0, 0, 1, 2}));
}

TEST(EndOfText, OfBytesEndsConversationsOnly) {
  RunConfig config;
  config.data.tokenizer = kByteTokenizer;
  EXPECT_EQ(with_end_of_text(config).model.eos_token_id, -1);
  config.data.format = "conversations";
  EXPECT_EQ(with_end_of_text(config).model.eos_token_id, 0);
  config.model.eos_token_id = 7;
  EXPECT_EQ(with_end_of_text(config).model.eos_token_id, 7);
}

TEST_F(DataTest, RefusesPathsWithoutText) {
  expect_message(message_of([&] { read_text(folder_ / "absent"); }), {"absent does not exist"});
  expect_message(message_of([&] { read_text(folder_); }), {"holds no text"});
  const std::string empty = write("empty.txt", "");
  expect_message(message_of([&] { read_text(empty); }), {"empty.txt holds no text"});
  const std::string binary = write("a.bin", std::string("x\0y", 3));
  expect_message(message_of([&] { read_text(binary); }), {"a.bin: holds a zero byte"});
  expect_message(message_of([&] { read_text(folder_); }), {"holds no text", "a.bin: holds a zero", "empty.txt: empty"});
}

TEST_F(DataTest, RefusesWhatIsNoFile) {
  DataConfig config;
  config.path = (folder_ / "fifo").string();
  ASSERT_EQ(mkfifo(config.path.c_str(), 0600), 0);
  expect_message(message_of([&] { open_tokens(config.path, config.tokenizer, 256); }),
                 {"fifo is a FIFO, allowed: a file or a folder"});
  expect_message(message_of([&] { open_token_file(config.path, 256); }), {"fifo: not a file"});
  config.path = "/dev/zero";
  expect_message(message_of([&] { open_tokens(config.path, config.tokenizer, 256); }), {"/dev/zero is a device"});
  fs::create_symlink("nowhere", folder_ / "link");
  config.path = (folder_ / "link").string();
  expect_message(message_of([&] { open_tokens(config.path, config.tokenizer, 256); }),
                 {"link does not exist", "symbolic link"});
  config.path = folder_.string();
  expect_message(message_of([&] { open_tokens(config.path, config.tokenizer, 256); }),
                 {"link: a symbolic link to nowhere, which leads to no"});
  fs::remove(folder_ / "link");
  fs::create_symlink("link", folder_ / "link");
  expect_message(message_of([&] { open_tokens(config.path, config.tokenizer, 256); }),
                 {"link: a symbolic link to link, which leads to no"});
}

TEST_F(DataTest, RefusesAnUnreadableFile) {
  const std::string path = write("secret.txt", "text");
  const std::string inner = write("closed/a.txt", "text");
  fs::permissions(path, fs::perms::none);
  // The superuser may read everything, so become somebody else for a moment.
  const uid_t user = geteuid();
  const auto as_other = [&](const std::string& what) {
    EXPECT_EQ(seteuid(user == 0 ? 65534 : user), 0);
    const std::string message = message_of([&] { read_text(what); });
    EXPECT_EQ(seteuid(user), 0);
    return message;
  };
  expect_message(as_other(path), {"secret.txt: cannot read this file"});
  expect_message(as_other(folder_.string()), {"secret.txt: cannot read this file"});
  fs::permissions(folder_ / "closed", fs::perms::none);
  expect_message(as_other(folder_.string()), {"closed: cannot list this folder"});
  fs::permissions(folder_ / "closed", fs::perms::owner_all);
}

TEST_F(DataTest, BytesAreTokensAndBack) {
  const std::string text = "h\xc3\xbc\xff\x01";
  const auto tokens = encode_bytes(text);
  EXPECT_EQ(tokens, (std::vector<int32_t>{'h', 0xc3, 0xbc, 0xff, 1}));
  EXPECT_EQ(decode_bytes(tokens), text);
  expect_message(message_of([] { decode_bytes(std::vector<int32_t>{256}); }), {"token id 256", "[0, 255]"});

  DataConfig config;
  config.path = write("a.txt", text);
  EXPECT_EQ(read_all(open_tokens(config.path, config.tokenizer, 256).tokens), tokens);
  expect_message(message_of([&] { open_tokens(config.path, config.tokenizer, 255); }),
                 {"model.vocab_size = 255", ">= 256"});
}

TEST_F(DataTest, ReadsBothTokenFormats) {
  const std::string narrow = write_tokens<uint16_t>("gpt2.bin", 20240520, 1, 3, {5, 50256, 0});
  EXPECT_TRUE(is_token_file(narrow));
  EXPECT_EQ(read_all(open_token_file(narrow, 50257)), (std::vector<int32_t>{5, 50256, 0}));
  const std::string wide = write_tokens<uint32_t>("llama3.bin", 20240801, 7, 3, {5, 128000, 0});
  EXPECT_EQ(read_all(open_token_file(wide, 128256)), (std::vector<int32_t>{5, 128000, 0}));
  DataConfig config;
  config.path = wide;
  EXPECT_EQ(open_tokens(config.path, config.tokenizer, 128256).tokens.num_tokens(), 3);
  EXPECT_FALSE(is_token_file(write("a.txt", "text")));
  EXPECT_FALSE(is_token_file(folder_.string()));
}

TEST_F(DataTest, RefusesDamagedTokenFiles) {
  const auto refused = [](const std::string& path) { return message_of([&] { open_token_file(path, 50257); }); };
  expect_message(refused(write_tokens<uint16_t>("a", 20240522, 1, 1, {5})), {"magic = 20240522", "20240520 or"});
  expect_message(refused(write_tokens<uint16_t>("b", 20240520, 2, 1, {5})), {"version = 2", "allowed: 1 with magic"});
  expect_message(refused(write_tokens<uint16_t>("c", 20240520, 1, 3, {5, 6})), {"1028 bytes", "1030 for the 3 tokens"});
  expect_message(refused(write_tokens<uint16_t>("d", 20240520, 1, 1, {5, 6})), {"1028 bytes", "1026 for the 1 tokens"});
  expect_message(refused(write_tokens<uint16_t>("e", 20240520, 1, 0, {})), {"number of tokens = 0"});
  expect_message(refused(write_tokens<uint16_t>("f", 20240520, 1, -5, {})), {"number of tokens = -5"});
  expect_message(refused(write("g", "short")), {"5 bytes", "at least the 1024"});
  expect_message(refused((folder_ / "absent").string()), {"absent: cannot open"});
}

TEST_F(DataTest, ChecksIdsWhenTheyAreRead) {
  const TokenSource source =
      open_token_file(write_tokens<uint32_t>("wide.bin", 20240801, 7, 4, {1, 2, 300, 0xffffffffU}), 300);
  std::vector<int32_t> two(2);
  EXPECT_NO_THROW(source.read(0, two));
  expect_message(message_of([&] { source.read(1, two); }), {"token 2 has id 300", "[0, model.vocab_size = 300)"});
  // Positions in messages are those of the file, also from a slice.
  expect_message(message_of([&] { source.slice(3, 1).read(0, std::span(two).first(1)); }), {"token 3", "4294967295"});
}

TEST_F(DataTest, ReadsBeyondFourGigabytes) {
  // A sparse file: 2^31 - 1 ids of four bytes, zero but for the last.
  constexpr int32_t kNumTokens = 0x7fffffff;
  const std::string path = write_tokens<uint32_t>("huge.bin", 20240801, 7, kNumTokens, {});
  fs::resize_file(path, 1024 + int64_t{4} * kNumTokens);
  const uint32_t last = 77;
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(1024 + int64_t{4} * (kNumTokens - 1));
  file.write(reinterpret_cast<const char*>(&last), sizeof(last));
  file.close();
  std::vector<int32_t> tail(2, -1);
  open_token_file(path, 100).read(kNumTokens - 2, tail);
  EXPECT_EQ(tail, (std::vector<int32_t>{0, 77}));
}

// A run keeps its file open: one that is removed is read to its end, one that is cut off is an error where it is read.
TEST_F(DataTest, NoticesATokenFileThatShrinks) {
  const std::string path = write_tokens<uint16_t>("tokens.bin", 20240520, 1, 4, {1, 2, 3, 4});
  const TokenSource source = open_token_file(path, 10);
  fs::resize_file(path, 1024 + 4);
  std::vector<int32_t> two(2);
  source.read(0, two);
  EXPECT_EQ(two, (std::vector<int32_t>{1, 2}));
  expect_message(message_of([&] { source.read(2, two); }),
                 {"tokens.bin: cannot read bytes 1028 to 1032", "1028 bytes left"});
  fs::remove(path);
  source.read(0, two);
  EXPECT_EQ(two, (std::vector<int32_t>{1, 2}));
}

TEST_F(DataTest, SplitsOffTheEnd) {
  DataConfig config;
  config.path = write("a.txt", "0123456789");
  config.sequence_length = 2;
  config.validation_fraction = 0.39;
  const Dataset data = open_dataset(config, ModelConfig());
  EXPECT_EQ(decode_bytes(read_all(data.train.front().tokens)), "0123456");
  EXPECT_EQ(decode_bytes(read_all(data.validation.front().tokens)), "789");

  config.validation_fraction = 0.2;
  expect_message(message_of([&] { open_dataset(config, ModelConfig()); }), {"2 tokens for validation", "+ 1 = 3"});
  config.validation_fraction = 0.8;
  expect_message(message_of([&] { open_dataset(config, ModelConfig()); }), {"2 tokens for training", "now 0.8"});
  config.validation_fraction = 0;
  EXPECT_EQ(num_tokens(open_dataset(config, ModelConfig()).train), 10);
  EXPECT_EQ(num_tokens(open_dataset(config, ModelConfig()).validation), 0);
}

TEST_F(DataTest, OpensAMixture) {
  write("code/a", "12345678");
  write("math", "abcdefghijkl");
  DataConfig config;
  config.sequence_length = 2;
  config.validation_fraction = 0.5;
  config.mixture = " coding:3:" + (folder_ / "code").string() + ", NONE:1:" + (folder_ / "math").string();
  const Dataset data = open_dataset(config, ModelConfig());
  ASSERT_EQ(data.train.size(), 2U);
  EXPECT_EQ(data.train[0].task, 1);
  EXPECT_EQ(data.train[0].weight, 3);
  EXPECT_EQ(data.train[1].task, kNoTask);
  EXPECT_EQ(decode_bytes(read_all(data.train[1].tokens)), "abcdef");
  EXPECT_EQ(decode_bytes(read_all(data.validation[0].tokens)), "5678");
  EXPECT_EQ(data.validation[1].weight, 2);  // windows
  const auto refusal = [&](const std::string& mixture) {
    config.mixture = mixture;
    return message_of([&] { mixture_entries(config); });
  };
  expect_message(refusal("CODING:3"), {"data.mixture", "CODING:3", "TASK:WEIGHT:PATH"});
  expect_message(refusal("COOKING:3:x"), {"data.mixture", "COOKING", "MATH"});
  for (const char* weight : {"0", "-1", "1.5", "x", ""}) {
    expect_message(refusal(fmt::format("MATH:{}:x", weight)), {"weight", weight, "integer in [1, 1000000]"});
  }
  config.path = "x";
  expect_message(refusal("MATH:1:x"), {"data.path = x with data.mixture", "one of them"});
}

}  // namespace
}  // namespace cadre::data_test
