// SPDX-License-Identifier: Apache-2.0
// The answer does not depend on who computes it. combine = slot_order: outputs, input gradients and the gradients of
// experts have the same bits with every exchange, layout of hosts and number of ranks. combine = partial: the same but
// for rounding, and the same bits again when the same run is repeated.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <thread>

#include "tests/support/moe_runs.hpp"

namespace cadre::moe_exactness_test {
namespace {

using test::BackEnd;
using test::Cut;
using test::Floats;
using test::MoeCase;
using test::MoeResult;
using test::MoeRun;

// Experts that do and do not divide by the ranks, or are fewer; top-k from one to all of them.
const MoeCase kCases[] = {
    {.name = "one expert", .num_experts = 1, .top_k = 1},
    {.name = "two experts", .num_experts = 2, .top_k = 1, .cut = Cut::ragged},
    {.name = "two of two", .num_experts = 2, .top_k = 2, .tight = true},
    {.name = "three, top-2", .num_experts = 3, .top_k = 2, .cut = Cut::hole},
    {.name = "three of three", .num_experts = 3, .top_k = 3, .cut = Cut::one},
    {.name = "seven, top-1", .num_experts = 7, .top_k = 1, .tight = true},
    {.name = "seven, top-3", .num_experts = 7, .top_k = 3, .cut = Cut::ragged},
    {.name = "seven of seven", .num_experts = 7, .top_k = 7, .cut = Cut::ragged, .tight = true},
    {.name = "ten, top-4", .num_experts = 10, .top_k = 4, .activation = Activation::gelu},
    {.name = "ten, top-9", .num_experts = 10, .top_k = 9, .cut = Cut::hole},
    {.name = "sixteen, top-2", .num_experts = 16, .top_k = 2, .cut = Cut::one, .tight = true},
    {.name = "sixteen, top-8", .num_experts = 16, .top_k = 8, .cut = Cut::ragged, .activation = Activation::relu},
    {.name = "sixteen, all rows to the last rank", .num_experts = 16, .top_k = 2, .favourites = true},
    {.name = "sixteen of sixteen", .num_experts = 16, .top_k = 16, .tight = true},
    {.name = "sixty-four, top-1", .num_experts = 64, .top_k = 1},
    {.name = "sixty-four, top-6", .num_experts = 64, .top_k = 6, .cut = Cut::hole},
    {.name = "sixty-four of sixty-four", .num_experts = 64, .top_k = 64, .num_tokens = 9},
    {.name = "masked slots, top-4", .num_experts = 10, .top_k = 4, .cut = Cut::ragged, .masked = true},
    {.name = "masked slots, top-1", .num_experts = 7, .top_k = 1, .masked = true, .tight = true},
    {.name = "masked slots, one expert", .num_experts = 3, .top_k = 1, .favourites = true, .masked = true},
    {.name = "fewer tokens than ranks", .num_experts = 10, .top_k = 3, .num_tokens = 3},
    {.name = "no token", .num_experts = 10, .top_k = 3, .num_tokens = 0},
};

void each_exchange(const MoeCase& test_case, Communicator& world, const std::function<void(MoeRun&)>& check) {
  for (const test::ExchangeVariant& variant : test::exchange_variants(world, test::rows_of(test_case))) {
    SCOPED_TRACE(testing::Message() << variant.describe() << ", " << world.size() << " ranks");
    MoeRun run(test_case, world, variant);
    check(run);
  }
}

void expect_same_bits(const Floats& actual, const Floats& expected, const std::string& what) {
  if (test::same_bits(actual, expected)) return;
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
        << what << ", element " << i << " of " << actual.size() << ": " << actual[i] << " and " << expected[i];
  }
}

using Grads = std::map<std::string, Floats>;

// `expected` may have more: those of other ranks.
void expect_same_bits(const Grads& actual, const Grads& expected) {
  for (const auto& [name, grad] : actual) expect_same_bits(grad, expected.at(name), name);
}

void expect_same_bits(const MoeResult& actual, const MoeResult& expected) {
  expect_same_bits(actual.y, expected.y, "y");
  expect_same_bits(actual.dx, expected.dx, "dx");
  expect_same_bits(actual.expert_grads, expected.expert_grads);
}

// What of one rank's result is for the rank of `run`.
MoeResult part_of(const MoeResult& whole, const MoeRun& run, int64_t hidden) {
  return {test::part_of(whole.y, run, hidden), test::part_of(whole.dx, run, hidden), whole.expert_grads};
}

const std::vector<int> kUpToEight = {1, 2, 3, 4, 5, 6, 7, 8};

void expect_the_bits_of_one_rank(BackEnd back_end, const std::vector<int>& ranks = kUpToEight) {
  for (MoeCase test_case : kCases) {
    SCOPED_TRACE(test_case.name);
    test_case.back_end = back_end;
    const MoeResult whole = test::single_rank(test_case);
    const auto body = [&](Communicator& world) {
      MoeResult flat;
      each_exchange(test_case, world, [&](MoeRun& run) {
        // Three times: memory is used again, and both halves of what the exchange keeps by turns.
        for (int repeat = 0; repeat < 3; ++repeat) {
          SCOPED_TRACE(testing::Message() << "repeat " << repeat);
          const MoeResult result = run.run();
          if (flat.expert_grads.empty() && flat.dx.empty()) flat = result;
          expect_same_bits(result, flat);
          expect_same_bits(result, part_of(whole, run, test_case.hidden));
        }
      });
    };
    test::on_ranks(body, ranks);
  }
}

TEST(MoeExactness, slot_order_gives_the_bits_of_one_rank_cpu) { expect_the_bits_of_one_rank(BackEnd::cpu_rows); }
TEST(MoeExactness, slot_order_gives_the_bits_of_one_rank_reference) { expect_the_bits_of_one_rank(BackEnd::reference); }
TEST(MoeExactness, slot_order_gives_the_bits_of_one_rank_gpu_twin) {
  expect_the_bits_of_one_rank(BackEnd::gpu_twin, {1, 3});
}

// combine = partial adds the slots of a token in another order: rank by rank, then (hierarchical) host by host. In fp32
// each of at most K + 1 additions and K products is off by u = 2^-24 at most and at random, so results differ by about
// sqrt(2 K + 1) u of the largest partial sum, relatively: 6e-7 for K = 64. 1e-6 of the norm is what is promised.
constexpr double kPartialTolerance = 1e-6;

double distance(const Floats& a, const Floats& b) {
  double sum = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    norm += double{b[i]} * double{b[i]};
  }
  return norm == 0.0 ? std::sqrt(sum) : std::sqrt(sum / norm);
}

void expect_close(const Floats& actual, const Floats& expected, const char* what) {
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_LE(distance(actual, expected), kPartialTolerance) << what;  // false for NaN
}

TEST(MoeExactness, partial_sums_are_close_and_repeat_bit_by_bit) {
  bool any_bit_differs = false;
  for (size_t i = 0; i < std::size(kCases); ++i) {
    MoeCase test_case = kCases[i];
    test_case.back_end = BackEnd::cpu_rows;
    SCOPED_TRACE(test_case.name);
    const MoeResult whole = test::single_rank(test_case);
    test_case.combine = CombineMode::partial;
    std::atomic<bool> differs = false;
    const auto body = [&](Communicator& world) {
      each_exchange(test_case, world, [&](MoeRun& run) {
        const MoeResult first = run.run();
        const MoeResult expected = part_of(whole, run, test_case.hidden);
        expect_close(first.y, expected.y, "y");
        expect_close(first.dx, expected.dx, "dx");
        if (!test::same_bits(first.y, expected.y)) differs = true;
        expect_same_bits(first.expert_grads,
                         whole.expert_grads);  // how results are combined changes no expert's gradient
        MoeRun again(test_case, world, run.variant());
        expect_same_bits(again.run(), first);
        expect_same_bits(run.run(), first);
      });
    };
    test::on_ranks(body, {1, 2, 3 + static_cast<int>(i % 6)});
    any_bit_differs |= differs;
  }
  // Else nothing was added in another order. Under MPI a rank sees its own tokens only.
  EXPECT_TRUE(any_bit_differs || test::runs_under_mpi());
}

// Ranks with an odd number read late what comes home to them.
class LateTransfer : public RowTransfer {
 public:
  explicit LateTransfer(std::unique_ptr<RowTransfer> transfer) : transfer_(std::move(transfer)) {}

  void pack(const Elements& rows) override {
    transfer_->pack(rows);
    packed_ = std::move(transfer_->packed());
  }
  void start() override {
    transfer_->start();
    finished_ = std::move(transfer_->finish());
  }
  Elements unpack() override {
    const Elements elements = transfer_->unpack();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    return elements;
  }
  Request& release() override { return transfer_->release(); }

 private:
  std::unique_ptr<RowTransfer> transfer_;
};

class LateRoute : public Route {
 public:
  LateRoute(std::unique_ptr<Route> route, bool late) : Route(route->plan()), route_(std::move(route)), late_(late) {}

  Request& announce() override { return route_->announce(); }
  void learn_counts() override {
    route_->learn_counts();
    receive_ = route_->receive();
  }
  std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) override {
    auto transfer = route_->transfer(direction, unit, format);
    if (!late_ || direction == Direction::to_experts) return transfer;
    return std::make_unique<LateTransfer>(std::move(transfer));
  }

 private:
  std::unique_ptr<Route> route_;
  bool late_;
};

class LateExchange : public Exchange {
 public:
  LateExchange(std::unique_ptr<Exchange> exchange, bool late) : exchange_(std::move(exchange)), late_(late) {}

  std::string_view name() const override { return exchange_->name(); }
  int rank() const override { return exchange_->rank(); }
  std::unique_ptr<Route> route(DispatchPlan plan) override {
    return std::make_unique<LateRoute>(exchange_->route(std::move(plan)), late_);
  }
  std::span<std::byte> memory() override { return exchange_->memory(); }
  bool packs_later() const override { return exchange_->packs_later(); }
  bool prefers_slots() const override { return exchange_->prefers_slots(); }

 private:
  std::unique_ptr<Exchange> exchange_;
  bool late_;
};

// The layer overwrites nothing that a peer has yet to read: its arena fills what it hands out again with NaN.
TEST(MoeExactness, rows_stay_until_the_slowest_peer_has_read_them) {
  for (const CombineMode combine : {CombineMode::partial, CombineMode::slot_order}) {
    const MoeCase test_case = {.name = "late", .num_experts = 10, .top_k = 4, .combine = combine};
    const auto body = [&](Communicator& world) {
      for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
        SCOPED_TRACE(variant.describe());
        MoeRun run(test_case, world, variant);
        const MoeResult expected = run.run();
        MoeRun late(test_case, world, variant, [&](std::unique_ptr<Exchange> exchange) {
          return std::make_unique<LateExchange>(std::move(exchange), world.rank() % 2 == 1);
        });
        for (int repeat = 0; repeat < 2; ++repeat) expect_same_bits(late.run(), expected);
      }
    };
    test::on_ranks(body, {2, 4});
  }
}

TEST(MoeExactness, cases_are_what_they_say) {
  for (const MoeCase& test_case : kCases) {
    SCOPED_TRACE(test_case.name);
    const auto [ids, num_unserved] = test::alone(test_case, [&](MoeRun& run) {
      static_cast<void>(run.run());
      const Tensor& chosen = run.saved().router.ids;
      const DispatchPlan& plan = run.saved().dispatch->plan();
      int num_without_expert = 0;
      for (int64_t t = 0; t < plan.num_tokens; ++t) {
        num_without_expert += plan.token_slots[t] == plan.token_slots[t + 1] ? 1 : 0;
      }
      return std::pair(std::vector<int32_t>(chosen.data<int32_t>(), chosen.data<int32_t>() + chosen.numel()),
                       num_without_expert);
    });
    ASSERT_EQ(static_cast<int64_t>(ids.size()), test_case.num_tokens * test_case.top_k);
    const auto num_masked = std::count(ids.begin(), ids.end(), -1);
    EXPECT_EQ(num_masked > 0, test_case.masked);
    EXPECT_EQ(num_unserved > 0, test_case.masked);
    EXPECT_LT(num_masked, std::max<int64_t>(1, static_cast<int64_t>(ids.size())));
    if (!test_case.favourites) continue;
    for (const int32_t id : ids) EXPECT_TRUE(id < 0 || id >= test_case.num_experts - test_case.top_k) << id;
  }
}

}  // namespace
}  // namespace cadre::moe_exactness_test
