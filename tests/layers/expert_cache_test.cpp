// SPDX-License-Identifier: Apache-2.0
// The cache of expert outputs: the same bits with and without, nothing after a change of weights, never more bytes than
// allowed.
#include "layers/moe/expert_cache.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <optional>

#include "layers/moe/experts.hpp"
#include "layers/moe/rows.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::expert_cache_test {
namespace {

constexpr int64_t kHidden = 24;
constexpr size_t kPlenty = 1 << 20;

// Three experts, which get 4, 0 and 3 rows.
class ExpertCacheTest : public testing::Test {
 protected:
  ExpertCacheTest()
      : experts_("experts", ExpertMap::contiguous(3, 1), 0,
                 {.ffn = {.hidden = kHidden, .width = 16, .init_std = 0.3}}) {
    store_.add_all(experts_);
    store_.allocate(DType::f32, /*with_grad=*/false, /*dry_run=*/false);
    store_.initialise(3);
    rows_ = test::random_tensor(arena_, DType::f32, {7, kHidden}, 1);
    std::iota(order_.begin(), order_.end(), 0);
  }

  Tensor outputs(ExpertCache* cache) {
    Context ctx{*kernels_, arena_, DType::f32};
    Experts::Saved saved;
    saved.offsets = {0, 4, 4, 7};
    return experts_.forward(ctx, rows_, index_tensor(order_), saved, cache);
  }

  static bool same_bits(const Tensor& a, const Tensor& b) { return std::memcmp(a.raw(), b.raw(), a.bytes()) == 0; }

  std::unique_ptr<Kernels> kernels_ = make_cpu_kernels(Precision::fp32);
  Arena arena_{Arena::Mode::real, /*poison=*/true};
  Experts experts_;
  ParameterStore store_;
  Tensor rows_;
  std::vector<int32_t> order_ = std::vector<int32_t>(7);
};

TEST_F(ExpertCacheTest, ChangesNoBit) {
  ExpertCache cache(kPlenty);
  const Tensor expected = outputs(nullptr);
  EXPECT_TRUE(same_bits(outputs(&cache), expected));
  EXPECT_EQ(cache.rows_found(), 0);
  EXPECT_TRUE(same_bits(outputs(&cache), expected));
  EXPECT_EQ(cache.rows_looked_for(), 14);
  EXPECT_EQ(cache.rows_found(), 7);
}

// One other row: the batch of that expert is computed anew, the other one is found.
TEST_F(ExpertCacheTest, OtherRowsAreComputed) {
  ExpertCache cache(kPlenty);
  outputs(&cache);
  rows_.data<float>()[5 * kHidden] += 1.0F;
  EXPECT_TRUE(same_bits(outputs(&cache), outputs(nullptr)));
  EXPECT_EQ(cache.rows_found(), 4);
}

TEST_F(ExpertCacheTest, IsInvalidAfterAChangeOfWeights) {
  ExpertCache cache(kPlenty);
  outputs(&cache);
  const size_t bytes = cache.bytes();
  for (Parameter* parameter : store_.parameters()) {
    parameter->value.data<float>()[0] += 0.5F;
    ++parameter->version;
  }
  EXPECT_TRUE(same_bits(outputs(&cache), outputs(nullptr)));
  EXPECT_EQ(cache.rows_found(), 0);
  EXPECT_EQ(cache.bytes(), bytes) << "what other weights made is forgotten";
}

// Any weight of an expert that is a mixture is a weight of that expert.
TEST_F(ExpertCacheTest, IsInvalidAfterAChangeInsideAMixture) {
  const ExpertOptions options = {.ffn = {.hidden = kHidden, .width = 16, .init_std = 0.3},
                                 .kinds = ExpertKinds::mixture,
                                 .inner_experts = 3,
                                 .inner_top_k = 2};
  Experts mixtures("experts", ExpertMap::contiguous(1, 1), 0, options);
  ParameterStore store;
  store.add_all(mixtures);
  store.allocate(DType::f32, /*with_grad=*/false, /*dry_run=*/false);
  store.initialise(3);
  const auto rows_found_after = [&](const auto& between) {
    ExpertCache cache(kPlenty);
    for (const bool first : {true, false}) {
      Context ctx{*kernels_, arena_, DType::f32};
      Experts::Saved saved;
      saved.offsets = {0, 7};
      mixtures.forward(ctx, rows_, index_tensor(order_), saved, &cache);
      if (first) between();
    }
    return cache.rows_found();
  };
  EXPECT_EQ(rows_found_after([] {}), 7);
  ASSERT_EQ(store.parameters().size(), 7U);  // the gate, and two matrices of three networks
  for (Parameter* parameter : store.parameters()) {
    EXPECT_EQ(rows_found_after([&] { ++parameter->version; }), 0) << parameter->name();
  }
}

// An expert's batch of 4 rows takes 768 bytes, that of 3 rows 576.
TEST_F(ExpertCacheTest, IsBounded) {
  ExpertCache cache(1000);
  outputs(&cache);
  EXPECT_EQ(cache.bytes(), 576U);  // what came first had to go
  outputs(&cache);
  EXPECT_LE(cache.bytes(), 1000U);
  EXPECT_TRUE(same_bits(outputs(&cache), outputs(nullptr)));
  ExpertCache small(100);
  outputs(&small);
  outputs(&small);
  EXPECT_EQ(small.bytes(), 0U);
  EXPECT_EQ(small.rows_found(), 0);
}

// What was used last stays.
TEST_F(ExpertCacheTest, ForgetsWhatWasNotUsedForLongest) {
  ExpertCache cache(3 * 8);
  const auto tensor = [&](double value) { return test::tensor_of(arena_, DType::f32, {1, 1}, {value}); };
  const int expert = 0;
  const auto holds = [&](double value) {
    const Tensor y = tensor(0.0);
    return cache.find(&expert, 1, tensor(value), y) && y.data<float>()[0] == static_cast<float>(-value);
  };
  for (const double value : {1.0, 2.0, 3.0}) cache.keep(&expert, 1, tensor(value), tensor(-value));
  EXPECT_TRUE(holds(1.0));
  cache.keep(&expert, 1, tensor(4.0), tensor(-4.0));
  EXPECT_FALSE(holds(2.0));
  EXPECT_TRUE(holds(1.0) && holds(3.0) && holds(4.0));
}

}  // namespace
}  // namespace cadre::expert_cache_test
