// SPDX-License-Identifier: Apache-2.0
// A whole forward and backward pass through a Dispatch, by every strategy, against sums that each rank can make alone: all
// values are small multiples of 1/8, so every order of additions gives the same bits.
#include "comm/exchange/dispatch.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>

#include "comm/base/random.hpp"
#include "comm/progress/engine.hpp"
#include "tests/support/exchanges.hpp"

namespace cadre::dispatch_test {
namespace {

constexpr int kTopK = 3;
constexpr int64_t kWidth = 32;
constexpr size_t kRowBytes = kWidth * sizeof(float);
const RowFormat kFormat = {DType::f32, kWidth, Wire::same};

int64_t tokens_of(int rank) { return rank == 1 ? 0 : 9 + 4 * rank; }

// The routing of any rank: expert of (token, k), all different for a token; -1 now and then.
int32_t expert_of(int rank, int64_t token, int k, int num_experts) {
  const Random random(8, "route", static_cast<uint64_t>(rank * 100 + token));
  if (random.below(7, static_cast<uint64_t>(1 + k)) == 0) return -1;
  return static_cast<int32_t>((random.below(static_cast<uint64_t>(num_experts), 0) + static_cast<uint64_t>(2 * k)) %
                              static_cast<uint64_t>(num_experts));
}

double weight_of(int rank, int64_t token, int k) { return static_cast<double>((rank + token + k) % 5 + 1) / 8.0; }

float value_of(int rank, int64_t token, int64_t h) { return static_cast<float>(rank * 64 + token + h % 3); }

// What an expert does to a row.
float factor_of(int expert) { return static_cast<float>(expert % 4 + 1); }

struct Place {
  int expert, rank;
  int64_t token;
  int k;
};

// The places of this rank, in expert order.
std::vector<Place> places_of(const ExpertMap& map, int rank) {
  std::vector<Place> places;
  for (const int expert : map.experts_of(rank)) {
    for (int source = 0; source < map.num_ranks(); ++source) {
      for (int64_t token = 0; token < tokens_of(source); ++token) {
        for (int k = 0; k < kTopK; ++k) {
          if (expert_of(source, token, k, map.num_experts()) == expert) places.push_back({expert, source, token, k});
        }
      }
    }
  }
  return places;
}

using Floats = std::vector<float>;

Elements elements_of(const Floats& rows) { return {reinterpret_cast<const std::byte*>(rows.data()), kRowBytes}; }

const float* row_at(const Elements& rows, int64_t i) { return reinterpret_cast<const float*>(rows.at(i)); }

class HostAdder : public RowAdder {
 public:
  explicit HostAdder(Floats& into) : into_(into) {}

  Request computed() override { return {}; }
  Elements add_at_experts(const RowSums& sums) override {
    add(sums, at_experts_);
    return elements_of(at_experts_);
  }
  Request add_at_tokens(const RowSums& sums) override {
    add(sums, into_);
    return {};
  }

 private:
  static void add(const RowSums& sums, Floats& into) {
    into.assign((sums.offsets.size() - 1) * kWidth, 0.0F);
    for (size_t i = 0; i + 1 < sums.offsets.size(); ++i) {
      for (int32_t j = sums.offsets[i]; j < sums.offsets[i + 1]; ++j) {
        const float weight = sums.weights.empty() ? 1.0F : static_cast<float>(sums.weights[j]);
        const Elements all = {sums.rows.base, sums.rows.stride};
        for (int64_t h = 0; h < kWidth; ++h) {
          into[i * kWidth + static_cast<size_t>(h)] += weight * row_at(all, sums.index[j])[h];
        }
      }
    }
  }

  Floats& into_;
  Floats at_experts_;
};

class Pass {
 public:
  Pass(Exchange& exchange, int num_ranks, CombineMode mode, bool announced)
      : map_(ExpertMap::contiguous(2 * num_ranks + 1, num_ranks)),
        rank_(exchange.rank()),
        mode_(mode),
        announced_(announced),
        places_(places_of(map_, rank_)),
        dispatch_(exchange, ids(), kTopK, map_, weights()) {}

  Task<void> forward() {
    if (announced_) {
      Task<void> announcement = dispatch_.announce();
      co_await announcement;
    }
    Task<void> out = run_experts(1.0F);
    co_await out;
    EXPECT_EQ(dispatch_.num_places(), static_cast<int64_t>(places_.size()));
    expect_offsets();
    Floats y;
    HostAdder adder(y);
    Task<void> combined = dispatch_.to_tokens(elements_of(results_), kFormat, Weighted::yes, mode_, adder);
    co_await combined;
    expect_sums(y, 1.0F, Weighted::yes);
  }

  Task<void> backward() {
    Task<void> out = run_experts(2.0F);
    co_await out;

    std::vector<int64_t> numbers;  // of each place: who it is
    for (const Place& place : places_) numbers.push_back(name_of(place.rank, place.token, place.k));
    std::vector<int64_t> arrived(static_cast<size_t>(tokens_of(rank_) * kTopK), 99);
    bool ran = false;
    Task<void> returned =
        dispatch_.numbers_to_tokens({reinterpret_cast<const std::byte*>(numbers.data()), sizeof(int64_t)},
                                    sizeof(int64_t), reinterpret_cast<std::byte*>(arrived.data()), Request(), [&] {
                                      ran = true;
                                      numbers.assign(numbers.size(), -5);
                                    });
    co_await returned;
    EXPECT_TRUE(ran);
    for (int64_t token = 0; token < tokens_of(rank_); ++token) {
      for (int k = 0; k < kTopK; ++k) {
        EXPECT_EQ(arrived[static_cast<size_t>(token * kTopK + k)],
                  expert_of(rank_, token, k, map_.num_experts()) < 0 ? 0 : name_of(rank_, token, k));
      }
    }

    Floats dx;
    HostAdder adder(dx);
    Task<void> combined = dispatch_.to_tokens(elements_of(results_), kFormat, Weighted::no, mode_, adder);
    co_await combined;
    expect_sums(dx, 2.0F, Weighted::no);
  }

  // A row of its own for each slot.
  Task<void> slots() {
    Floats rows;
    for (int64_t token = 0; token < tokens_of(rank_); ++token) {
      for (int k = 0; k < kTopK; ++k) {
        if (expert_of(rank_, token, k, map_.num_experts()) < 0) continue;
        rows.insert(rows.end(), kWidth, static_cast<float>(name_of(rank_, token, k)));
      }
    }
    Task<ExpertRows> arrival = dispatch_.slots_to_experts(elements_of(rows), kFormat);
    const ExpertRows arrived = co_await arrival;
    for (size_t p = 0; p < places_.size(); ++p) {
      const auto expected = static_cast<float>(name_of(places_[p].rank, places_[p].token, places_[p].k));
      const float* row = row_at(arrived.elements(), static_cast<int64_t>(p));
      EXPECT_EQ(row[0], expected);
      EXPECT_EQ(row[kWidth - 1], expected);
    }
  }

 private:
  static int64_t name_of(int rank, int64_t token, int k) { return (rank * 100 + token) * kTopK + k + 1; }

  std::vector<int32_t> ids() const {
    std::vector<int32_t> ids;
    for (int64_t token = 0; token < tokens_of(rank_); ++token) {
      for (int k = 0; k < kTopK; ++k) ids.push_back(expert_of(rank_, token, k, map_.num_experts()));
    }
    return ids;
  }
  std::vector<double> weights() const {
    std::vector<double> weights;
    for (int64_t token = 0; token < tokens_of(rank_); ++token) {
      for (int k = 0; k < kTopK; ++k) weights.push_back(weight_of(rank_, token, k));
    }
    return weights;
  }

  // Rows of scale times the tokens to the experts; checks what arrives and keeps what the experts make of it.
  Task<void> run_experts(float scale) {
    Floats& tokens = sent_.emplace_back();  // kept: peers may read it until the results are back
    for (int64_t token = 0; token < tokens_of(rank_); ++token) {
      for (int64_t h = 0; h < kWidth; ++h) tokens.push_back(scale * value_of(rank_, token, h));
    }
    bool ran = false;
    Task<ExpertRows> arrival = dispatch_.to_experts(
        elements_of(tokens), kFormat, [] { return Request(); }, [&] { ran = true; });
    const ExpertRows arrived = co_await arrival;
    EXPECT_TRUE(ran);
    EXPECT_EQ(arrived.elements().index.size(), places_.size());
    const std::vector<double> place_weights = dispatch_.place_weights();
    EXPECT_EQ(place_weights.size(), places_.size());
    if (place_weights.size() != places_.size()) co_return;
    Floats& results = results_of_.emplace_back();
    for (size_t p = 0; p < places_.size(); ++p) {
      const Place& place = places_[p];
      EXPECT_EQ(place_weights[p], weight_of(place.rank, place.token, place.k));
      const float* row = row_at(arrived.elements(), static_cast<int64_t>(p));
      for (int64_t h = 0; h < kWidth; ++h) {
        EXPECT_EQ(row[h], scale * value_of(place.rank, place.token, h)) << "place " << p;
        results.push_back(factor_of(place.expert) * row[h]);
      }
    }
    results_ = results;
  }

  void expect_offsets() const {
    std::vector<int32_t> offsets = {0};
    for (const int expert : map_.experts_of(rank_)) {
      offsets.push_back(offsets.back());
      for (const Place& place : places_) offsets.back() += place.expert == expert ? 1 : 0;
    }
    EXPECT_EQ(dispatch_.expert_offsets(), offsets);
  }

  void expect_sums(const Floats& sums, float scale, Weighted weighted) const {
    ASSERT_EQ(sums.size(), static_cast<size_t>(tokens_of(rank_) * kWidth));
    for (int64_t token = 0; token < tokens_of(rank_); ++token) {
      float factor = 0.0F;
      for (int k = 0; k < kTopK; ++k) {
        const int32_t expert = expert_of(rank_, token, k, map_.num_experts());
        if (expert < 0) continue;
        factor +=
            factor_of(expert) * (weighted == Weighted::yes ? static_cast<float>(weight_of(rank_, token, k)) : 1.0F);
      }
      for (int64_t h = 0; h < kWidth; ++h) {
        EXPECT_EQ(sums[static_cast<size_t>(token * kWidth + h)], factor * scale * value_of(rank_, token, h))
            << "token " << token;
      }
    }
  }

  ExpertMap map_;
  int rank_;
  CombineMode mode_;
  bool announced_;
  std::vector<Place> places_;
  Dispatch dispatch_;
  Floats results_;  // [places]
  std::deque<Floats> sent_, results_of_;
};

TEST(Dispatch, carries_rows_numbers_and_slots_there_and_back) {
  test::each_exchange(
      {.max_tokens = 32, .top_k = kTopK, .row_bytes = kRowBytes}, [](Communicator& world, Exchange& exchange) {
        Lane lane(0, world.duplicate("expert"), world.duplicate("data"));
        int64_t num_places = 0;
        for (const CombineMode mode : {CombineMode::partial, CombineMode::slot_order}) {
          for (const bool announced : {false, true}) {
            SCOPED_TRACE(testing::Message() << (mode == CombineMode::partial ? "partial" : "slot order")
                                            << (announced ? ", announced before" : ""));
            const auto pass = std::make_unique<Pass>(exchange, world.size(), mode, announced);
            for (auto step : {&Pass::forward, &Pass::backward, &Pass::slots}) {
              Task<void> task = (pass.get()->*step)();
              Engine().run(lane, task);
            }
            Request all_done = world.barrier();  // peers may still read these rows
            wait(all_done);
            num_places += static_cast<int64_t>(
                places_of(ExpertMap::contiguous(2 * world.size() + 1, world.size()), world.rank()).size());
          }
        }
        EXPECT_GT(wait(world.all_reduce(num_places, ReduceOp::sum)), 0);
      });
}

// Two tokens, top-2, as in the header.
TEST(Dispatch, places_rows_by_expert_then_source_then_token) {
  test::on_ranks(
      [](Communicator& world) {
        const auto exchange = make_exchange("flat", test::setup_of(world, discover_topology(world), {4, 2, kRowBytes}));
        const std::vector<int32_t> ids = world.rank() == 0 ? std::vector<int32_t>{1, 0} : std::vector<int32_t>{1, 3};
        Dispatch dispatch(*exchange, ids, 2, ExpertMap::contiguous(4, 2), {0.25, 0.75});
        Lane lane(0, world.duplicate("expert"), world.duplicate("data"));
        Task<void> announcement = dispatch.announce();
        Engine().run(lane, announcement);
        const bool first = world.rank() == 0;
        EXPECT_EQ(dispatch.expert_offsets(), first ? (std::vector<int32_t>{0, 1, 3}) : (std::vector<int32_t>{0, 0, 1}));
        EXPECT_EQ(dispatch.place_weights(),
                  first ? (std::vector<double>{0.75, 0.25, 0.25}) : (std::vector<double>{0.75}));
      },
      {2});
}

}  // namespace
}  // namespace cadre::dispatch_test
