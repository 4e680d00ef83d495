// SPDX-License-Identifier: Apache-2.0
// The choice of a token: greedy, top-k, and frequencies that follow the softmax.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/infer/generate.hpp"

namespace cadre::sample_test {
namespace {

const std::vector<float> kLogits = {0.5F, 2.0F, -1.0F, 2.0F, 1.0F};

TEST(Sample, TemperatureZeroTakesTheLikeliestAndTheLowerIdOfEquals) {
  for (int64_t position = 0; position < 20; ++position) {
    EXPECT_EQ(sample_token(kLogits, {.temperature = 0.0, .seed = 3}, position), 1);
  }
}

TEST(Sample, TopKKeepsTheLikeliest) {
  std::set<int32_t> seen;
  for (int64_t position = 0; position < 200; ++position) {
    seen.insert(sample_token(kLogits, {.temperature = 5.0, .top_k = 3}, position));
  }
  EXPECT_EQ(seen, (std::set<int32_t>{1, 3, 4}));
}

TEST(Sample, TopKBeyondTheVocabularyKeepsAll) {
  std::set<int32_t> seen;
  for (int64_t position = 0; position < 500; ++position) {
    seen.insert(sample_token(kLogits, {.temperature = 5.0, .top_k = 100}, position));
  }
  EXPECT_EQ(seen.size(), kLogits.size());
}

TEST(Sample, TopPKeepsTheFewestThatReachIt) {
  // At temperature 5 the probabilities are .243 (1 and 3), .199 (4), .180 (0) and .134 (2).
  const auto seen = [](double top_p, int64_t top_k) {
    std::set<int32_t> ids;
    for (int64_t position = 0; position < 400; ++position) {
      ids.insert(sample_token(kLogits, {.temperature = 5.0, .top_k = top_k, .top_p = top_p}, position));
    }
    return ids;
  };
  EXPECT_EQ(seen(0.0, 0), (std::set<int32_t>{1}));
  EXPECT_EQ(seen(0.48, 0), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(seen(0.5, 0), (std::set<int32_t>{1, 3, 4}));
  EXPECT_EQ(seen(0.87, 0), (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(seen(0.72, 3), (std::set<int32_t>{1, 3, 4}));
  EXPECT_EQ(seen(0.7, 3), (std::set<int32_t>{1, 3}));  // .487 of the .686 that top-k left
}

// 0.5 / 2, 2 / 2, -1 x 2, 2, 1: token 3 is the likeliest, and with the same penalty token 4 beats 1 and 3 at 4.
TEST(Sample, PenaltyMakesTokensOfTheTextLessLikely) {
  const auto best = [](double penalty, const std::vector<int32_t>& text) {
    return sample_token(kLogits, {.temperature = 0.0, .repetition_penalty = penalty}, 0, text);
  };
  EXPECT_EQ(best(1.0, {1, 1}), 1);
  EXPECT_EQ(best(2.0, {1, 0, 2, 1}), 3);
  EXPECT_EQ(best(1.5, {1, 3}), 1);  // 2 / 1.5 is above 1
  EXPECT_EQ(best(4.0, {1, 3, 1}), 4);
  EXPECT_EQ(best(0.5, {4}), 1);  // 1 / 0.5 equals 2, and the lower id counts as likelier
  EXPECT_EQ(best(0.4, {4}), 4);
  const std::vector<float> negative = {-1.0F, -1.5F};
  EXPECT_EQ(sample_token(negative, {.temperature = 0.0, .repetition_penalty = 2.0}, 0, std::vector<int32_t>{0}), 1);
}

TEST(Sample, FrequenciesFollowTheSoftmax) {
  constexpr int64_t kDraws = 40000;
  constexpr double kTemperature = 0.7;
  std::array<double, 5> counts{};
  for (int64_t position = 0; position < kDraws; ++position) {
    counts[static_cast<size_t>(sample_token(kLogits, {.temperature = kTemperature, .seed = 11}, position))] += 1.0;
  }
  double sum = 0.0;
  for (const float logit : kLogits) sum += std::exp(logit / kTemperature);
  for (size_t id = 0; id < kLogits.size(); ++id) {
    const double probability = std::exp(kLogits[id] / kTemperature) / sum;
    // Five standard deviations of a binomial share.
    const double tolerance = 5.0 * std::sqrt(probability * (1.0 - probability) / kDraws);
    EXPECT_NEAR(counts[id] / kDraws, probability, tolerance) << "token " << id;
  }
}

TEST(Sample, DependsOnSeedAndPositionOnly) {
  const auto text = [](uint64_t seed) {
    std::vector<int32_t> tokens;
    for (int64_t position = 0; position < 50; ++position) {
      tokens.push_back(sample_token(kLogits, {.seed = seed}, position));
    }
    return tokens;
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
}

TEST(Sample, RefusesLogitsThatAreNoNumbers) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = kLogits;
    logits[2] = bad;
    try {
      sample_token(logits, {}, 7);
      ADD_FAILURE() << "no Error for " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::numerics);
      EXPECT_NE(error.text().find("token 7"), std::string::npos);
    }
  }
}

// A vocabulary that is padded: the ids behind the tokens never come out, whatever their logits, but for those that are named.
TEST(Sample, LeavesOutWhatIsNoToken) {
  const std::vector<float> logits = {1.0F, 2.0F, 0.5F, 90.0F, 80.0F, 70.0F};
  for (const double temperature : {0.0, 1.0}) {
    for (const double top_p : {1.0, 0.9}) {
      std::set<int32_t> seen;
      for (int64_t position = 0; position < 200; ++position) {
        seen.insert(sample_token(logits, {.temperature = temperature, .top_p = top_p, .num_ids = 3}, position));
      }
      EXPECT_LT(*seen.rbegin(), 3);
      EXPECT_EQ(seen.size() > 1, temperature > 0.0);
      EXPECT_EQ(sample_token(logits, {.temperature = temperature, .top_p = top_p, .num_ids = 3, .more = {4}}, 0), 4);
    }
  }
}

}  // namespace
}  // namespace cadre::sample_test
