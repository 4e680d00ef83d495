// SPDX-License-Identifier: Apache-2.0
// Text and token files, the split, and the order of sequences: complete, resumable, independent of the rank count.
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
#include "runtime/data/token_file.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/messages.hpp"

namespace cadre {
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

// Token i has id i.
TokenSource counting_source(int64_t num_tokens) {
  auto ids = std::make_shared<std::vector<uint32_t>>(num_tokens);
  std::iota(ids->begin(), ids->end(), 0U);
  const uint32_t* data = ids->data();
  return {"counting", std::move(ids), data, num_tokens, num_tokens};
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
  const OpenedTokens opened = open_tokens(config, 256);
  EXPECT_EQ(
      describe(opened.summary),
      "2 files, 8 bytes, 9 tokens, a newline between documents; left out: empty0, empty1, empty2, empty3, empty4, "
      "empty5, empty6, empty7 and 2 more (empty), z (holds a zero byte, so it is not text)");
  config.path = (folder_ / "a").string();
  EXPECT_EQ(describe(open_tokens(config, 256).summary), "1 file, 5 bytes, 5 tokens");
  config.path = write_tokens<uint16_t>("gpt2.bin", 20240520, 1, 3, {5, 6, 0});
  EXPECT_EQ(describe(open_tokens(config, 50257).summary), "1 file, 1030 bytes, 3 tokens");
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
  const auto tokens_with = [&](int64_t end) { return read_all(open_tokens(config, 320, end).tokens); };
  EXPECT_EQ(tokens_with(-1), (std::vector<int32_t>{'a', 'b', '\n', 'c', '\n', '\n'}));
  EXPECT_EQ(tokens_with(0), (std::vector<int32_t>{'a', 'b', 0, 'c', 0, '\n'}));
  EXPECT_EQ(tokens_with(256), (std::vector<int32_t>{'a', 'b', 256, 'c', 256, '\n'}));
  EXPECT_EQ(open_tokens(config, 320, 256).summary.between_documents, "end-of-text token 256");
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
    return read_all(open_tokens(run.data, 6, run.model.eos_token_id).tokens);
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
  expect_message(message_of([&] { open_tokens(config, 256); }), {"fifo is a FIFO, allowed: a file or a folder"});
  expect_message(message_of([&] { open_token_file(config.path, 256); }), {"fifo: not a file"});
  config.path = "/dev/zero";
  expect_message(message_of([&] { open_tokens(config, 256); }), {"/dev/zero is a device"});
  fs::create_symlink("nowhere", folder_ / "link");
  config.path = (folder_ / "link").string();
  expect_message(message_of([&] { open_tokens(config, 256); }), {"link does not exist", "symbolic link"});
  config.path = folder_.string();
  expect_message(message_of([&] { open_tokens(config, 256); }),
                 {"link: a symbolic link to nowhere, which leads to no"});
  fs::remove(folder_ / "link");
  fs::create_symlink("link", folder_ / "link");
  expect_message(message_of([&] { open_tokens(config, 256); }), {"link: a symbolic link to link, which leads to no"});
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
  EXPECT_EQ(read_all(open_tokens(config, 256).tokens), tokens);
  expect_message(message_of([&] { open_tokens(config, 255); }), {"model.vocab_size = 255", ">= 256"});
}

TEST_F(DataTest, ReadsBothTokenFormats) {
  const std::string narrow = write_tokens<uint16_t>("gpt2.bin", 20240520, 1, 3, {5, 50256, 0});
  EXPECT_TRUE(is_token_file(narrow));
  EXPECT_EQ(read_all(open_token_file(narrow, 50257)), (std::vector<int32_t>{5, 50256, 0}));
  const std::string wide = write_tokens<uint32_t>("llama3.bin", 20240801, 7, 3, {5, 128000, 0});
  EXPECT_EQ(read_all(open_token_file(wide, 128256)), (std::vector<int32_t>{5, 128000, 0}));
  DataConfig config;
  config.path = wide;
  EXPECT_EQ(open_tokens(config, 128256).tokens.num_tokens(), 3);
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
  EXPECT_EQ(decode_bytes(read_all(data.train)), "0123456");
  EXPECT_EQ(decode_bytes(read_all(data.validation)), "789");

  config.validation_fraction = 0.2;
  expect_message(message_of([&] { open_dataset(config, ModelConfig()); }), {"2 tokens for validation", "+ 1 = 3"});
  config.validation_fraction = 0.8;
  expect_message(message_of([&] { open_dataset(config, ModelConfig()); }), {"2 tokens for training", "now 0.8"});
  config.validation_fraction = 0;
  EXPECT_EQ(open_dataset(config, ModelConfig()).train.num_tokens(), 10);
  EXPECT_EQ(open_dataset(config, ModelConfig()).validation.num_tokens(), 0);
}

TEST(Order, PermutationVisitsEverythingOnce) {
  for (const int64_t size : {1, 2, 3, 4, 5, 7, 64, 65, 1000}) {
    const Permutation permutation(size, 42, 0);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    EXPECT_EQ(static_cast<int64_t>(seen.size()), size);
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), size - 1);
  }
}

TEST(Order, PermutationDependsOnSeedAndEpochAndMixes) {
  constexpr int64_t kSize = 1000;
  const auto fixed_points = [](const Permutation& a, const auto& b) {
    int64_t count = 0;
    for (int64_t i = 0; i < kSize; ++i) count += a(i) == b(i) ? 1 : 0;
    return count;
  };
  const Permutation base(kSize, 42, 0);
  // Two random permutations agree in about one place (Poisson of mean 1): more than 10 has probability 1e-8.
  EXPECT_LE(fixed_points(base, Permutation(kSize, 43, 0)), 10);
  EXPECT_LE(fixed_points(base, Permutation(kSize, 42, 1)), 10);
  EXPECT_LE(fixed_points(base, [](int64_t i) { return i; }), 10);
  EXPECT_EQ(fixed_points(base, Permutation(kSize, 42, 0)), kSize);
  // The mean step between neighbours is a third of the size, its standard deviation over 999 pairs below 1 %.
  double distance = 0;
  for (int64_t i = 1; i < kSize; ++i) distance += static_cast<double>(std::abs(base(i) - base(i - 1)));
  EXPECT_NEAR(distance / (kSize - 1), kSize / 3.0, 0.05 * kSize);
}

TEST(Order, EveryEpochReadsEveryWindowOnce) {
  // 103 tokens: 25 windows of 4, the last two tokens after the last target are left. A batch of 10 cuts epochs in two.
  const BatchReader reader(counting_source(103), 4, 10, 7);
  ASSERT_EQ(reader.num_windows(), 25);
  std::vector<std::vector<int64_t>> epochs(4);
  for (int64_t step = 0; step < 10; ++step) {
    for (int64_t i = 0; i < 10; ++i) epochs[(step * 10 + i) / 25].push_back(reader.window(step, i));
  }
  EXPECT_NE(epochs[0], epochs[1]);
  for (auto& epoch : epochs) {
    std::ranges::sort(epoch);
    std::vector<int64_t> all(25);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(epoch, all);
  }
}

TEST(Order, BatchesDoNotDependOnHowRanksCutThem) {
  constexpr int64_t kBatch = 7;
  constexpr size_t kLength = 5;
  const BatchReader reader(counting_source(500), kLength, kBatch, 11);
  std::vector<int32_t> tokens(kBatch * kLength, -1);
  std::vector<int32_t> targets(kBatch * kLength, -1);
  reader.fill_batch(3, 0, kBatch, tokens, targets);
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(targets[i], tokens[i] + 1);
    EXPECT_EQ(tokens[i], reader.window(3, static_cast<int64_t>(i / kLength)) * 5 + static_cast<int64_t>(i % kLength));
  }
  EXPECT_GT(std::set<int32_t>(tokens.begin(), tokens.end()).size(), kLength);

  const BatchReader resumed(counting_source(500), kLength, kBatch, 11);
  for (const int64_t num_ranks : {2, 3, 8}) {
    std::vector<int32_t> all_tokens;
    std::vector<int32_t> all_targets;
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
      const int64_t first = kBatch * rank / num_ranks;
      const int64_t count = kBatch * (rank + 1) / num_ranks - first;  // 0 for one of 8 ranks
      std::vector<int32_t> part(static_cast<size_t>(count) * kLength, -1);
      std::vector<int32_t> part_targets(part.size(), -1);
      resumed.fill_batch(3, first, count, part, part_targets);
      all_tokens.insert(all_tokens.end(), part.begin(), part.end());
      all_targets.insert(all_targets.end(), part_targets.begin(), part_targets.end());
    }
    EXPECT_EQ(all_tokens, tokens);
    EXPECT_EQ(all_targets, targets);
  }
}

TEST(Order, NeedsOneWindow) {
  EXPECT_EQ(BatchReader(counting_source(5), 4, 1, 0).num_windows(), 1);
  expect_message(message_of([] { BatchReader(counting_source(4), 4, 1, 0); }), {"counting: 4 tokens", "+ 1 = 5"});
}

// The windows that batches of these sizes read, from `at` on, which moves along.
std::vector<int64_t> windows_of(const BatchReader& reader, DataPosition& at, const std::vector<int64_t>& batches) {
  std::vector<int64_t> windows;
  for (const int64_t batch : batches) {
    for (int64_t i = 0; i < batch; ++i) windows.push_back(reader.window(at, i));
    at = reader.advance(at, batch);
  }
  return windows;
}

std::vector<int64_t> sorted(std::vector<int64_t> values) {
  std::ranges::sort(values);
  return values;
}

std::vector<int64_t> all_windows(int64_t count) {
  std::vector<int64_t> windows(static_cast<size_t>(count));
  std::iota(windows.begin(), windows.end(), 0);
  return windows;
}

TEST(DataPosition, ABatchThatChangesReadsEveryWindowOnce) {
  const BatchReader reader(counting_source(103), 4, 10, 7);  // 25 windows
  DataPosition at = reader.begin();
  std::vector<int64_t> first = windows_of(reader, at, {2, 2, 3, 8, 10});
  EXPECT_EQ(at, (DataPosition{.pass = 1, .window = 0, .seed = 7, .sequence_length = 4, .num_tokens = 103}));
  EXPECT_EQ(sorted(first), all_windows(25));
  // The end of a pass may cut a batch.
  const std::vector<int64_t> more = windows_of(reader, at, {20, 10, 25});
  EXPECT_EQ(at.pass, 3);
  EXPECT_EQ(at.window, 5);
  EXPECT_EQ(sorted({more.begin(), more.begin() + 25}), all_windows(25));
  EXPECT_EQ(sorted({more.begin() + 25, more.begin() + 50}), all_windows(25));
  EXPECT_NE(std::vector(more.begin(), more.begin() + 25), first);
  // With one batch throughout, position and step say the same.
  DataPosition step_3 = reader.advance(reader.begin(), 30);
  for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(reader.window(step_3, i), reader.window(3, i));
}

TEST(DataPosition, AnotherSeedWaitsForTheNextPass) {
  const BatchReader before(counting_source(103), 4, 10, 7);
  const BatchReader after(counting_source(103), 4, 10, 8);
  const uint64_t fingerprint = counting_source(103).fingerprint();
  DataPosition at = before.begin();
  at.fingerprint = fingerprint;
  std::vector<int64_t> windows = windows_of(before, at, {10});
  ResumedPosition resumed = resume_position(at, after, fingerprint);
  EXPECT_EQ(resumed.position, at);
  EXPECT_NE(resumed.note.find("of seed 7 stays until the end of this pass"), std::string::npos) << resumed.note;
  const std::vector<int64_t> rest = windows_of(after, resumed.position, {15});
  windows.insert(windows.end(), rest.begin(), rest.end());
  EXPECT_EQ(sorted(windows), all_windows(25));
  EXPECT_EQ(resumed.position.seed, 8U);
  EXPECT_EQ(after.window(resumed.position, 3), Permutation(25, 8, 1)(3));
}

TEST(DataPosition, OtherWindowsOrDataBeginANewPass) {
  const BatchReader reader(counting_source(103), 4, 10, 7);
  const uint64_t fingerprint = counting_source(103).fingerprint();
  DataPosition at = reader.advance(reader.begin(), 12);
  at.fingerprint = fingerprint;
  EXPECT_EQ(resume_position(at, reader, fingerprint).position, at);
  EXPECT_EQ(resume_position(at, reader, fingerprint).note, "");
  const auto begins_anew = [&](const DataPosition& saved, const BatchReader& now, uint64_t print, const char* why) {
    const ResumedPosition resumed = resume_position(saved, now, print);
    DataPosition expected = now.begin();
    expected.pass = 1;
    expected.fingerprint = print;
    EXPECT_EQ(resumed.position, expected) << why;
    EXPECT_NE(resumed.note.find(why), std::string::npos) << resumed.note;
    EXPECT_NE(resumed.note.find("after 12 windows of pass 1"), std::string::npos) << resumed.note;
  };
  begins_anew(at, BatchReader(counting_source(103), 8, 10, 7), fingerprint, "data.sequence_length = 8, was 4");
  begins_anew(at, BatchReader(counting_source(104), 4, 10, 7), 99, "104 tokens, was 103;");
  begins_anew(at, reader, 99, "103 tokens, was 103 with other content");
  // At the very beginning of a pass nothing is lost.
  EXPECT_EQ(resume_position(reader.begin(), BatchReader(counting_source(103), 8, 10, 7), 1).position.pass, 0);
}

// XXH64 of int64 5 and uint32 0 1 2 3 4, little-endian, with seed 0: xxhash of another language.
TEST(TokenSource, FingerprintsTokensHoweverTheyAreStored) {
  const std::vector<uint8_t> bytes = {9, 0, 1, 2, 3, 4};
  const std::vector<uint16_t> words = {0, 1, 2, 3, 4};
  const TokenSource narrow("narrow", nullptr, bytes.data(), 6, 256);
  const TokenSource wide("wide", nullptr, words.data(), 5, 256);
  EXPECT_EQ(wide.fingerprint(), 0x8f9335c5bab45966U);
  EXPECT_EQ(narrow.slice(1, 5).fingerprint(), wide.fingerprint());
  EXPECT_NE(wide.slice(0, 4).fingerprint(), wide.fingerprint());
  EXPECT_NE(counting_source(10'000).fingerprint(), counting_source(10'001).fingerprint());
}

}  // namespace
}  // namespace cadre
