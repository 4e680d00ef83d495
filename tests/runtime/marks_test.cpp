// SPDX-License-Identifier: Apache-2.0
// Which targets count and where documents end: from end-of-text tokens, from marks, in batches, and in the mean of a run.
#include "runtime/data/marks.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "runtime/data/order.hpp"
#include "runtime/parallel/micro_batch.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::marks_test {
namespace {

using Ids = std::vector<int32_t>;
using Lengths = std::vector<int64_t>;

struct Marked {
  Ids targets;
  BatchMarks marks;
  double weight = 0.0;
};

Marked mark(const Marking& marking, int64_t first, const Ids& window) {
  Marked marked{{window.begin() + 1, window.end()}, {}, 0.0};
  marked.weight = mark_window(marking, first, window, marked.targets, marked.marks);
  return marked;
}

TEST(Marks, EndOfTextEndsADocumentAndIsItsLastTarget) {
  const Marked one = mark({.document_end = 0}, 0, {5, 6, 0, 7, 0, 0, 8, 9});
  EXPECT_EQ(one.targets, (Ids{6, 0, -1, 0, -1, -1, 9}));
  EXPECT_EQ(one.marks.documents, (Lengths{3, 2, 1, 1}));
  EXPECT_EQ(one.weight, 4.0);
  const Marked other = mark({.document_end = 0}, 0, {5, 6, 7});
  EXPECT_EQ(other.marks.documents, (Lengths{2}));
  EXPECT_EQ(other.targets, (Ids{6, 7}));
  EXPECT_FALSE(other.marks.has_weights());
}

TEST(Marks, WeightsBelongToTheTokenThatIsPredicted) {
  // Tokens 0 .. 7 of the data: a document of 3, one of 4, padding of 1.
  const TokenMarks marks{{1, 0, 0, 1, 0, 0, 0, 1}, {9.0F, 0.0F, 1.0F, 9.0F, 0.0F, 0.5F, 2.0F, 0.0F}};
  const Marked whole = mark({.marks = &marks}, 0, {10, 11, 12, 13, 14, 15, 16, 17});
  EXPECT_EQ(whole.targets, (Ids{-1, 12, -1, -1, 15, 16, -1}));
  EXPECT_EQ(whole.marks.documents, (Lengths{3, 4}));
  EXPECT_EQ(whole.weight, 3.5);
  EXPECT_TRUE(whole.marks.has_weights());
  const Marked later = mark({.marks = &marks}, 4, {14, 15, 16, 17});
  EXPECT_EQ(later.targets, (Ids{15, 16, -1}));
  EXPECT_EQ(later.weight, 2.5);
}

TEST(Marks, FingerprintSeesEveryList) {
  const TokenMarks marks{{1, 0}, {0.0F, 1.0F}};
  TokenMarks other = marks;
  other.begins = {1, 1};
  EXPECT_NE(fingerprint(other), fingerprint(marks));
  other = marks;
  other.weights = {0.0F, 0.5F};
  EXPECT_NE(fingerprint(other), fingerprint(marks));
}

constexpr int64_t kLength = 12;
constexpr int64_t kSequences = 6;

// Six sequences of documents of 2 to 6 tokens, with weights of 0, 1/2, 1 and 2.
DataPart marked_data() {
  auto ids = std::make_shared<std::vector<uint8_t>>(kSequences * kLength + 1);
  auto marks = std::make_shared<TokenMarks>();
  int64_t left = 0;
  int64_t length = 2;
  for (size_t i = 0; i < ids->size(); ++i) {
    (*ids)[i] = static_cast<uint8_t>(i * i / 7 + 3 * i);
    const bool begins = left == 0 || i % kLength == 0;
    if (begins) left = length = length % 5 + 2;
    --left;
    marks->begins.push_back(begins ? 1 : 0);
    marks->weights.push_back(std::vector<float>{0.0F, 1.0F, 0.5F, 2.0F, 0.0F}[i % 5]);
  }
  const uint8_t* first = ids->data();
  const auto count = static_cast<int64_t>(ids->size());
  return {.tokens = TokenSource("marked", std::move(ids), first, count, 256), .marks = std::move(marks)};
}

TEST(Marks, BatchHasOneWeightHoweverItIsDivided) {
  const BatchReader reader({marked_data()}, kLength, kSequences, 3);
  const DataPosition from = reader.begin();
  const double whole = reader.weight_of_batch(from, kSequences);
  for (const int64_t parts : {1, 2, 3, 4}) {
    double sum = 0.0;
    for (int64_t i = 0; i < parts; ++i) {
      sum += MicroBatch(reader, from, 0, part_of({0, kSequences}, i, parts), kLength).loss_weight();
    }
    EXPECT_EQ(sum, whole);
  }
  EXPECT_GT(whole, 0.0);
  EXPECT_LT(whole, static_cast<double>(kSequences * kLength));
  const BatchReader plain({{.tokens = marked_data().tokens}}, kLength, kSequences, 3);
  EXPECT_EQ(plain.weight_of_batch(from, kSequences), static_cast<double>(kSequences * kLength));
  EXPECT_NE(fingerprint({marked_data()}), fingerprint({{.tokens = marked_data().tokens}}));
}

RunConfig run_of(int64_t micro_batches) {
  RunConfig config = test::small_run("unused");
  config.data.sequence_length = kLength;
  config.model.initializer_range = 0.2;  // losses that differ
  config.train.batch = kSequences;
  config.train.micro_batches = micro_batches;
  return config;
}

double packed_loss(Communicator world, const RunConfig& config) {
  WorkerOptions options = training_options(config, world);
  options.with_grad = false;
  Worker worker(std::move(world), options);
  worker.store().initialise(5);
  const BatchReader reader({marked_data()}, kLength, config.train.batch, 1);
  return evaluate(worker, reader, config, 1).loss;
}

// The weighted mean of the losses of all documents, each as a sequence of its own.
double loss_one_by_one(Communicator world, const RunConfig& config) {
  WorkerOptions options = training_options(config, world);
  options.with_grad = false;
  Worker worker(std::move(world), options);
  worker.store().initialise(5);
  const DataPart data = marked_data();
  Ids ids(kSequences * kLength + 1);
  data.tokens.read(0, ids);
  double sum = 0.0;
  double weights = 0.0;
  const std::vector<uint8_t>& begins = data.marks->begins;
  for (size_t first = 0; first < kSequences * kLength;) {
    size_t last = first + 1;
    while (begins[last] == 0) ++last;
    // Targets of one weight at a time.
    for (size_t t = first; t + 1 < last; ++t) {
      const double weight = data.marks->weights[t + 1];
      if (weight == 0.0) continue;
      const auto length = static_cast<int64_t>(last - first);
      Ids targets(static_cast<size_t>(length), -1);
      targets[t - first] = ids[t + 1];
      MicroBatch one({ids.begin() + static_cast<ptrdiff_t>(first), ids.begin() + static_cast<ptrdiff_t>(last)},
                     std::move(targets), 1, length);
      ArenaScope scope(worker.arena());
      LaneContext ctx = worker.inference_context();
      ctx.tokens = one.facts(0);
      LocalStep local = empty_local_step(config.model);
      Task<void> pass = forward_here(worker, ctx, one, 0, local);
      worker.run(pass);
      sum += weight * local.loss_sum;
      weights += weight;
    }
    first = last;
  }
  return sum / weights;
}

TEST(Marks, PackedLossIsThatOfTheDocumentsOneByOneOnAnyRanks) {
  double expected = 0.0;
  test::on_one_rank([&](Communicator world) { expected = loss_one_by_one(std::move(world), run_of(1)); });
  EXPECT_GT(expected, 5.0);
  test::on_ranks(
      [&](Communicator& world) {
        for (const int64_t micro_batches : {1, 3}) {
          RunConfig config = run_of(micro_batches);
          EXPECT_NEAR(packed_loss(world.duplicate("run"), config), expected, 1e-6 * expected) << micro_batches;
          config.parallel.pipeline = world.size() % 2 == 0 ? 2 : 1;
          EXPECT_NEAR(packed_loss(world.duplicate("run"), config), expected, 1e-6 * expected) << "pipeline";
        }
      },
      {1, 2, 3, 4});
}

}  // namespace
}  // namespace cadre::marks_test
