// SPDX-License-Identifier: Apache-2.0
// The order of sequences: complete, resumable, independent of the rank count, from one set of data or from several.
#include "runtime/data/order.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "tests/support/messages.hpp"

namespace cadre::order_test {
namespace {

using test::expect_message;
using test::message_of;

// Token i has id i.
TokenSource counting_source(int64_t num_tokens) {
  auto ids = std::make_shared<std::vector<uint32_t>>(num_tokens);
  std::iota(ids->begin(), ids->end(), 0U);
  const uint32_t* data = ids->data();
  return {"counting", std::move(ids), data, num_tokens, num_tokens};
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
    for (int64_t i = 0; i < 10; ++i)
      epochs[(step * 10 + i) / 25].push_back(reader.place(reader.at_step(step), i).window);
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

// Two sets with weights 3 and 2, of 7 and 4 windows: in any five sequences 3 and 2, and every epoch of a set is whole.
TEST(Order, DrawsFromSetsAsTheirWeightsSay) {
  const std::vector<DataPart> parts = {{counting_source(29), 1, 3}, {counting_source(17), kNoTask, 2}};
  const BatchReader reader(parts, 4, 10, 7);
  EXPECT_EQ(reader.num_windows(), 11);
  EXPECT_TRUE(reader.has_tasks());
  std::vector<std::vector<int64_t>> drawn(2);
  std::vector<size_t> order;
  for (int64_t step = 0; step < 14; ++step) {
    for (int64_t i = 0; i < 10; ++i) {
      const BatchReader::Place place = reader.place(reader.at_step(step), i);
      EXPECT_EQ(reader.task(reader.at_step(step), i), place.part == 0 ? 1 : kNoTask);
      drawn[place.part].push_back(place.window);
      order.push_back(place.part);
    }
  }
  for (size_t first = 0; first < order.size(); first += 5) {
    EXPECT_EQ(std::count(order.begin() + static_cast<ptrdiff_t>(first),
                         order.begin() + static_cast<ptrdiff_t>(first) + 5, 0U),
              3);
  }
  EXPECT_NE(std::vector<size_t>(order.begin(), order.begin() + 5),
            std::vector<size_t>(order.begin() + 5, order.begin() + 10));
  // 84 sequences are 12 epochs of 7 windows, 56 are 14 of 4.
  for (int64_t window = 0; window < 7; ++window) EXPECT_EQ(std::ranges::count(drawn[0], window), 12);
  for (int64_t window = 0; window < 4; ++window) EXPECT_EQ(std::ranges::count(drawn[1], window), 14);
  // A held-out part is read window by window, all sets through.
  const BatchReader once(each_window_once(parts, 4), 4, 11, 7);
  std::set<std::pair<size_t, int64_t>> seen;
  for (int64_t i = 0; i < 11; ++i) seen.insert({once.place(once.begin(), i).part, once.place(once.begin(), i).window});
  EXPECT_EQ(seen.size(), 11U);
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
}  // namespace cadre::order_test
