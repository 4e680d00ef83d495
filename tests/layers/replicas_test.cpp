// SPDX-License-Identifier: Apache-2.0
// Experts with replicas compute what they do without: outputs and input gradients with the same bits (combine = slot_order),
// and the gradients of all replicas of an expert add up to its own, with every exchange and layout of hosts.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/moe_runs.hpp"

namespace cadre::replicas_test {
namespace {

using test::BackEnd;
using test::Cut;
using test::Floats;
using test::MoeCase;
using test::MoeResult;
using test::MoeRun;

// Beside their own experts, ranks hold some of others: expert e is also on the `extra` ranks after that of its contiguous
// place, if it is one of the first `num_copied` experts.
ExpertMap with_replicas(int num_experts, int num_ranks, int num_copied, int extra) {
  std::vector<std::vector<int>> experts_of(static_cast<size_t>(num_ranks));
  const ExpertMap contiguous = ExpertMap::contiguous(num_experts, num_ranks);
  for (int expert = 0; expert < num_experts; ++expert) {
    for (int i = 0; i <= (expert < num_copied ? std::min(extra, num_ranks - 1) : 0); ++i) {
      experts_of[(contiguous.owner(expert) + i) % num_ranks].push_back(expert);
    }
  }
  return ExpertMap::of(num_experts, experts_of);
}

struct Case {
  MoeCase moe;
  int num_copied;
  int extra;  // copies of each of them, beside the first
};

// The reference back end computes each row for itself, so how many rows an expert has at once changes no bit.
const Case kCases[] = {
    {{.name = "two of ten copied", .num_experts = 10, .top_k = 3}, 2, 1},
    {{.name = "all experts everywhere", .num_experts = 5, .top_k = 2, .cut = Cut::ragged}, 5, 7},
    {{.name = "one expert", .num_experts = 1, .top_k = 1, .cut = Cut::hole}, 1, 2},
    {{.name = "two more of each", .num_experts = 7, .top_k = 4, .cut = Cut::one, .tight = true}, 7, 2},
    {{.name = "masked", .num_experts = 8, .top_k = 2, .cut = Cut::ragged, .masked = true}, 4, 1},
    {{.name = "no token", .num_experts = 8, .top_k = 2, .num_tokens = 0}, 4, 1},
};

constexpr double kUnit = 0x1p-24;  // of fp32

// Gradients sum up to num_tokens products, here in other groups: at most that many roundings of the sum of magnitudes,
// which the norms of these random sums exceed by no more than the square root of their number; a factor of 4 to spare.
void expect_close(const Floats& actual, const Floats& expected, int64_t num_tokens) {
  ASSERT_EQ(actual.size(), expected.size());
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += std::pow(double{actual[i]} - double{expected[i]}, 2);
    norm += double{expected[i]} * double{expected[i]};
  }
  EXPECT_LE(std::sqrt(difference), 4.0 * std::sqrt(static_cast<double>(num_tokens)) * kUnit * std::sqrt(norm));
}

// Over all ranks, of expert gradients by name: [all ranks][elements], zeros where a rank has not the expert.
Floats summed_over(Communicator& world, const std::map<std::string, Floats>& grads, const std::string& name,
                   size_t size) {
  Floats sum(size, 0.0F);
  if (const auto mine = grads.find(name); mine != grads.end()) sum = mine->second;
  return wait(world.all_reduce(std::move(sum), ReduceOp::sum));
}

TEST(Replicas, give_the_same_bits_and_their_gradients_add_up) {
  for (const Case& one : kCases) {
    SCOPED_TRACE(one.moe.name);
    MoeCase test_case = one.moe;
    test_case.back_end = BackEnd::reference;
    const MoeResult whole = test::single_rank(test_case);
    test_case.map = [&](int num_ranks) {
      return with_replicas(test_case.num_experts, num_ranks, one.num_copied, one.extra);
    };
    const auto body = [&](Communicator& world) {
      for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
        SCOPED_TRACE(testing::Message() << variant.describe() << ", " << world.size() << " ranks");
        MoeRun run(test_case, world, variant);
        for (int repeat = 0; repeat < 2; ++repeat) {
          const MoeResult result = run.run();
          EXPECT_TRUE(test::same_bits(result.y, test::part_of(whole.y, run, test_case.hidden)));
          EXPECT_TRUE(test::same_bits(result.dx, test::part_of(whole.dx, run, test_case.hidden)));
          for (const auto& [name, grad] : whole.expert_grads) {
            expect_close(summed_over(world, result.expert_grads, name, grad.size()), grad, test_case.num_tokens);
          }
        }
      }
    };
    test::on_ranks(body);
  }
}

// combine = partial: the sums of the ranks are other ones, equal to rounding.
TEST(Replicas, are_close_with_partial_sums) {
  MoeCase test_case = {.name = "partial", .num_experts = 10, .top_k = 4, .combine = CombineMode::partial};
  MoeCase plain = test_case;
  plain.combine = CombineMode::slot_order;
  const MoeResult whole = test::single_rank(plain);
  test_case.map = [](int num_ranks) { return with_replicas(10, num_ranks, 5, 1); };
  test::on_ranks([&](Communicator& world) {
    for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
      SCOPED_TRACE(testing::Message() << variant.describe() << ", " << world.size() << " ranks");
      MoeRun run(test_case, world, variant);
      const MoeResult result = run.run();
      // As in moe_exactness_test: 2 K + 1 roundings at random, here K = 4.
      const Floats y = test::part_of(whole.y, run, test_case.hidden);
      expect_close(result.y, y, 1);
      expect_close(result.dx, test::part_of(whole.dx, run, test_case.hidden), 1);
    }
  });
}

// All replicas work, and each about as much as the others.
TEST(Replicas, share_the_rows) {
  MoeCase test_case = {.name = "shares", .num_experts = 2, .top_k = 1, .num_tokens = 240};
  test_case.map = [](int num_ranks) { return with_replicas(2, num_ranks, 2, num_ranks - 1); };
  test::on_ranks([&](Communicator& world) {
    MoeRun run(test_case, world, test::exchange_variants(world).front());
    static_cast<void>(run.run());
    const int64_t received = run.saved().dispatch->num_places();
    // Each source deals the slots of two experts out in turn: one more or less of each of them.
    EXPECT_NEAR(static_cast<double>(received), 240.0 / world.size(), 2.0 * world.size());
    if (world.size() == 1) return;
    EXPECT_GT(run.saved().dispatch->expert_offsets()[1], 0);
    EXPECT_GT(received, run.saved().dispatch->expert_offsets()[1]);
  });
}

}  // namespace
}  // namespace cadre::replicas_test
