// SPDX-License-Identifier: Apache-2.0
// The balancer of DeepSeek on the example that it was published with (2 layers, 12 experts, 16 slots, 4 groups, 2 nodes, 8
// ranks): the result, and every step on the way, worked out by hand and with a script.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/placement/policies.hpp"

namespace cadre::eplb_test {
namespace {

using Ints = std::vector<int>;

const std::vector<double> kLayer0 = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
const std::vector<double> kLayer1 = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
constexpr PlacementSizes kSizes = {.slots = 16, .groups = 4, .nodes = 2, .ranks = 8};
constexpr PlacementSizes kGlobal = {.slots = 16, .groups = 1, .nodes = 1, .ranks = 8};

// Sums of a few numbers with at most one place behind the point: exact but for the last bits.
constexpr double kRounding = 1e-12;

void expect_loads(const ExpertSlots& slots, const std::vector<double>& weight, const std::vector<double>& expected,
                  double imbalance) {
  const std::vector<double> loads = rank_loads(slots, weight);
  ASSERT_EQ(loads.size(), expected.size());
  for (size_t rank = 0; rank < loads.size(); ++rank) {
    EXPECT_NEAR(loads[rank], expected[rank], kRounding * expected[rank]) << "rank " << rank;
  }
  EXPECT_NEAR(max_over_mean(loads), imbalance, 5e-4);  // as printed, three places
}

TEST(Eplb, hierarchical_result_of_the_published_example) {
  const ExpertSlots first = eplb(kLayer0, kSizes);
  EXPECT_EQ(first.expert, (Ints{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(first.copy, (Ints{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0}));
  expect_loads(first, kLayer0, {121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152}, 1.208);
  EXPECT_EQ(count_copies(first, 12), (Ints{1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1}));

  const ExpertSlots second = eplb(kLayer1, kSizes);
  EXPECT_EQ(second.expert, (Ints{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
  EXPECT_EQ(second.copy, (Ints{0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0}));
  expect_loads(second, kLayer1, {173, 179.5, 120.5, 172, 123, 152, 118.5, 117.5}, 1.242);
}

// It puts both copies of an expert on one rank, where they are of no use: that is how the algorithm is.
TEST(Eplb, global_result_of_the_published_example) {
  const ExpertSlots first = eplb(kLayer0, kGlobal);
  EXPECT_EQ(first.expert, (Ints{10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1}));
  expect_loads(first, kLayer0, {130.5, 95.5, 130, 138, 138.5, 134.5, 134, 132}, 1.073);
  const ExpertSlots second = eplb(kLayer1, kGlobal);
  EXPECT_EQ(second.expert, (Ints{1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7}));
  expect_loads(second, kLayer1, {123, 123, 125.5, 118.5, 172, 157.5, 172, 164.5}, 1.190);
  // Groups that do not spread over the nodes are the same as none.
  EXPECT_EQ(eplb(kLayer0, {.slots = 16, .groups = 3, .nodes = 2, .ranks = 8}), first);
}

TEST(Eplb, the_baseline_of_the_example) {
  EXPECT_EQ(rank_loads(contiguous_slots(12, 4), kLayer0), (std::vector<double>{262, 330, 116, 325}));
  EXPECT_NEAR(max_over_mean(rank_loads(contiguous_slots(12, 4), kLayer0)), 1.278, 5e-4);
  EXPECT_EQ(rank_loads(contiguous_slots(12, 4), kLayer1), (std::vector<double>{231, 280, 516, 129}));
  EXPECT_NEAR(max_over_mean(rank_loads(contiguous_slots(12, 4), kLayer1)), 1.785, 5e-4);
}

TEST(Eplb, groups_go_to_nodes) {
  EXPECT_EQ(balanced_packing(std::vector<float>{262, 330, 116, 325}, 2).pack, (Ints{1, 0, 0, 1}));
  EXPECT_EQ(balanced_packing(std::vector<float>{231, 280, 516, 129}, 2).pack, (Ints{1, 1, 0, 0}));
}

TEST(Eplb, busy_experts_of_a_node_get_copies) {
  // Experts 3 to 8 and 9 10 11 0 1 2 of layer 0, 6 to 11 and 3 4 5 0 1 2 of layer 1.
  EXPECT_EQ(replicate_experts(std::vector<float>{61, 104, 165, 39, 4, 73}, 8).copies, (Ints{1, 2, 2, 1, 1, 1}));
  EXPECT_EQ(replicate_experts(std::vector<float>{56, 183, 86, 90, 132, 40}, 8).copies, (Ints{1, 2, 1, 1, 2, 1}));
  EXPECT_EQ(replicate_experts(std::vector<float>{187, 157, 172, 86, 16, 27}, 8).copies, (Ints{2, 1, 2, 1, 1, 1}));
  const Replication last = replicate_experts(std::vector<float>{64, 19, 197, 20, 107, 104}, 8);
  EXPECT_EQ(last.copies, (Ints{1, 1, 2, 1, 2, 1}));
  EXPECT_EQ(last.expert, (Ints{0, 1, 2, 3, 4, 5, 2, 4}));
  EXPECT_EQ(last.copy, (Ints{0, 0, 0, 0, 0, 0, 1, 1}));
}

TEST(Eplb, ties_go_to_the_lowest_index) {
  const Packing packing = balanced_packing(std::vector<float>{1, 1, 1, 1, 1, 1}, 3);
  EXPECT_EQ(packing.pack, (Ints{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(packing.place, (Ints{0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(replicate_experts(std::vector<float>{2, 4, 4, 1}, 6).expert, (Ints{0, 1, 2, 3, 1, 2}));
  // One item a pack is left where it is, whatever it weighs.
  EXPECT_EQ(balanced_packing(std::vector<float>{1, 3, 2}, 3).pack, (Ints{0, 1, 2}));
}

TEST(Eplb, refuses_sizes_that_do_not_divide) {
  const auto refusal = [](int num_experts, const PlacementSizes& sizes) -> std::string {
    EXPECT_FALSE(eplb_can_run(num_experts, sizes));
    try {
      check_eplb(num_experts, sizes);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal(12, {.slots = 15, .ranks = 8}).find("8 ranks do not divide 15 replicas"), std::string::npos);
  EXPECT_NE(refusal(10, {.slots = 16, .groups = 4, .nodes = 2, .ranks = 8}).find("4 groups do not divide 10 experts"),
            std::string::npos);
  EXPECT_NE(refusal(12, {.slots = 18, .groups = 4, .nodes = 2, .ranks = 9}).find("2 nodes do not divide 9 ranks"),
            std::string::npos);
  EXPECT_NE(refusal(12, {.slots = 8, .ranks = 8}).find("8 replicas for 12 experts"), std::string::npos);
  EXPECT_TRUE(eplb_can_run(12, kSizes));
  EXPECT_NO_THROW(check_eplb(12, kSizes));
}

}  // namespace
}  // namespace cadre::eplb_test
