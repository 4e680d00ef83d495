// SPDX-License-Identifier: Apache-2.0
// Experts that run all at once on the twin of a GPU, against the same experts one after the other on the reference: outputs,
// input gradients and weight gradients, over two micro-batches, with one expert frozen and one without rows.
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "layers/moe/experts.hpp"
#include "layers/moe/rows.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::expert_group_test {
namespace {

constexpr int64_t kHidden = 24;
constexpr int64_t kRows = 12;
constexpr int kExperts = 4;

struct Result {
  Tensor y, dx;
  std::vector<std::vector<double>> grads;
  int num_weight_parts = 0;
};

class ExpertGroups : public testing::TestWithParam<Activation> {
 protected:
  Result run(const Kernels& kernels, ExpertKinds kinds) {
    Experts experts(
        "experts", ExpertMap::contiguous(kExperts, 1), 0,
        {.ffn = {.hidden = kHidden, .width = 16, .activation = GetParam(), .init_std = 0.3}, .kinds = kinds});
    ParameterStore store;
    store.add_all(experts);
    store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false);
    store.initialise(3);
    store.forget_grads();
    experts.each_parameter(1, [](Parameter& weight) { weight.frozen = true; });
    for (Parameter* weight : store.parameters()) weight->grad.fill_zero();
    // As if a micro-batch before had reached the last expert alone.
    experts.each_parameter(3, [](Parameter& weight) { weight.grad_is_zero = false; });

    std::vector<int32_t> order(kRows);
    std::iota(order.rbegin(), order.rend(), 0);
    const Tensor rows = test::random_tensor(arena_, DType::f32, {kRows, kHidden}, 1);
    const Tensor dy = test::random_tensor(arena_, DType::f32, {kRows, kHidden}, 2);
    Context ctx{kernels, arena_, DType::f32};
    Result result;
    for (const std::vector<int32_t>& offsets : {std::vector<int32_t>{0, 5, 7, 7, 12}, {0, 0, 4, 9, 12}}) {
      Experts::Saved saved;
      saved.offsets = offsets;
      result.y = experts.forward(ctx, rows, index_tensor(order), saved);
      result.dx = experts.input_grad(ctx, saved, dy);
      result.num_weight_parts = experts.num_weight_parts(saved);
      for (int part = 0; part < result.num_weight_parts; ++part) experts.weight_grad(ctx, saved, part);
    }
    for (const Parameter* weight : store.parameters()) {
      EXPECT_EQ(weight->grad_is_zero, weight->frozen) << weight->name();
      result.grads.push_back(test::values_of(weight->grad));
    }
    return result;
  }

  Arena arena_{Arena::Mode::real, /*poison=*/true};
  std::unique_ptr<Kernels> reference_ = make_reference_kernels();
  std::unique_ptr<Kernels> twin_ = test::make_gpu_twin(test::TwinOrder::descending, test::TwinMemory::copied);
};

TEST_P(ExpertGroups, AreTheirExperts) {
  const Result together = run(*twin_, ExpertKinds::same);
  const Result one_by_one = run(*reference_, ExpertKinds::same);
  ASSERT_EQ(together.num_weight_parts, 1);
  ASSERT_EQ(one_by_one.num_weight_parts, kExperts);
  // Values are below 16; each is a few roundings of 2^-24 on its way through two products of at most 32 terms.
  constexpr double kBound = 16 * 64 * 0x1p-24;
  test::expect_near(test::values_of(together.y), test::values_of(one_by_one.y), kBound);
  test::expect_near(test::values_of(together.dx), test::values_of(one_by_one.dx), kBound);
  ASSERT_EQ(together.grads.size(), one_by_one.grads.size());
  for (size_t i = 0; i < together.grads.size(); ++i) {
    SCOPED_TRACE(i);
    test::expect_near(together.grads[i], one_by_one.grads[i], kBound);
    const bool is_frozen = i / 2 == 1;
    EXPECT_EQ(together.grads[i] == std::vector<double>(together.grads[i].size(), 0.0), is_frozen);
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, ExpertGroups, testing::Values(Activation::silu, Activation::gelu));

class TypedExperts : public ExpertGroups {};

TEST_P(TypedExperts, RunOneAfterTheOther) {
  const Result typed = run(*twin_, ExpertKinds::typed);
  const Result expected = run(*reference_, ExpertKinds::typed);
  EXPECT_EQ(typed.num_weight_parts, kExperts);
  test::expect_near(test::values_of(typed.y), test::values_of(expected.y), 16 * 64 * 0x1p-24);
}

INSTANTIATE_TEST_SUITE_P(Activations, TypedExperts, testing::Values(Activation::silu));

}  // namespace
}  // namespace cadre::expert_group_test
