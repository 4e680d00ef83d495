// SPDX-License-Identifier: Apache-2.0
// Interval sets against hand-made answers and against a bitmap with one bit a nanosecond.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "runtime/report/step_sums.hpp"

namespace cadre::intervals_test {
namespace {

using List = std::vector<Interval>;

TEST(Intervals, MergesWhatTouchesAndDropsWhatIsEmpty) {
  EXPECT_EQ(IntervalSet({{5, 7}, {1, 3}, {3, 4}, {6, 6}, {9, 8}, {2, 3}}).intervals(), (List{{1, 4}, {5, 7}}));
  EXPECT_EQ(IntervalSet(List{}).total(), 0);
  EXPECT_EQ(IntervalSet({{-5, -2}, {-3, 1}}).intervals(), (List{{-5, 1}}));
}

TEST(Intervals, SetsOfTwo) {
  const IntervalSet a({{0, 10}, {20, 30}});
  const IntervalSet b({{5, 7}, {8, 22}, {30, 31}});
  EXPECT_EQ(united(a, b).intervals(), (List{{0, 31}}));
  EXPECT_EQ(intersected(a, b).intervals(), (List{{5, 7}, {8, 10}, {20, 22}}));
  EXPECT_EQ(without(a, b).intervals(), (List{{0, 5}, {7, 8}, {22, 30}}));
  EXPECT_EQ(without(b, a).intervals(), (List{{10, 20}, {30, 31}}));
  EXPECT_EQ(without(a, IntervalSet()), a);
  EXPECT_EQ(intersected(a, IntervalSet()), IntervalSet());
}

// The totals of a published trace of an overlapped training step on 64 GPUs: 113,440 us of communication, 124,310 us of
// computation, 109,250 us of both at once, in a span of 129,012 us. Here as 40 rounds, in an order that is not that of
// time, cut in pieces that overlap.
TEST(Intervals, HiddenShareOfAPublishedStep) {
  constexpr int64_t kMicrosecond = 1000;
  constexpr int64_t kRounds = 40;
  constexpr int64_t kSpan = 129'012 * kMicrosecond;
  constexpr int64_t kCompute = 124'310 * kMicrosecond / kRounds;
  constexpr int64_t kHidden = 109'250 * kMicrosecond / kRounds;
  constexpr int64_t kCommunication = 113'440 * kMicrosecond / kRounds;
  List compute;
  List communication;
  for (int64_t i = 0; i < kRounds; ++i) {
    const int64_t begin = (i * 17 % kRounds) * kSpan / kRounds;
    const int64_t end = begin + kCompute;
    compute.push_back({begin + kCompute / 3, end});
    compute.push_back({begin, begin + kCompute / 2});
    // It begins so late in the computation that the hidden part ends with it.
    const int64_t posted = end - kHidden;
    communication.push_back({posted, posted + kCommunication / 2});
    communication.push_back({posted + kCommunication / 4, posted + kCommunication});
  }
  const IntervalSet computed(compute);
  const IntervalSet communicated(communication);
  const IntervalSet hidden = intersected(communicated, computed);
  EXPECT_EQ(computed.intervals().size(), 40U);
  EXPECT_EQ(computed.total(), 124'310 * kMicrosecond);
  EXPECT_EQ(communicated.total(), 113'440 * kMicrosecond);
  EXPECT_EQ(hidden.total(), 109'250 * kMicrosecond);
  EXPECT_EQ(without(communicated, computed).total(), 4'190 * kMicrosecond);
  EXPECT_EQ(kSpan - united(computed, communicated).total(), 512 * kMicrosecond);
  const double percent = 100.0 * static_cast<double>(hidden.total()) / static_cast<double>(communicated.total());
  EXPECT_EQ(std::round(percent * 100), 9631) << "96.31 % to the two places that are published";
}

constexpr int64_t kBits = 200;
using Bitmap = std::vector<bool>;

Bitmap bitmap_of(const List& intervals) {
  Bitmap bits(kBits, false);
  for (const Interval& one : intervals) {
    for (int64_t i = one.begin; i < one.end; ++i) bits[static_cast<size_t>(i)] = true;
  }
  return bits;
}

void expect_same(const IntervalSet& set, const Bitmap& bits, const char* what) {
  EXPECT_EQ(bitmap_of(set.intervals()), bits) << what;
  EXPECT_EQ(set.total(), std::ranges::count(bits, true)) << what;
  for (size_t i = 1; i < set.intervals().size(); ++i) {
    EXPECT_LT(set.intervals()[i - 1].end, set.intervals()[i].begin) << what << ": sorted, with gaps";
  }
}

TEST(Intervals, AgreeWithABitmap) {
  std::mt19937 random(1);
  const auto draw = [&] {
    List list(random() % 12);
    for (Interval& one : list) {
      one.begin = static_cast<int64_t>(random() % kBits);
      one.end = std::min<int64_t>(kBits, one.begin + static_cast<int64_t>(random() % 40) - 4);
    }
    return list;
  };
  for (int round = 0; round < 2000; ++round) {
    const List a = draw();
    const List b = draw();
    const Bitmap in_a = bitmap_of(a);
    const Bitmap in_b = bitmap_of(b);
    Bitmap either(kBits);
    Bitmap both(kBits);
    Bitmap only_a(kBits);
    for (size_t i = 0; i < kBits; ++i) {
      either[i] = in_a[i] || in_b[i];
      both[i] = in_a[i] && in_b[i];
      only_a[i] = in_a[i] && !in_b[i];
    }
    const IntervalSet set_a(a);
    const IntervalSet set_b(b);
    expect_same(set_a, in_a, "set");
    expect_same(united(set_a, set_b), either, "union");
    expect_same(intersected(set_a, set_b), both, "intersection");
    expect_same(without(set_a, set_b), only_a, "difference");
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace cadre::intervals_test
