// SPDX-License-Identifier: Apache-2.0
// A mixture layer written with the public interface alone, forward and backward, by every strategy, against sums that each
// rank makes by itself. All values are small multiples of 1/8, so every order of additions gives the same bits.
#include <gtest/gtest.h>

#include <limits>
#include <optional>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "layers/facade/dispatcher.hpp"
#include "layers/facade/moe.hpp"
#include "layers/tensor/tensor.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/following_transport.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::moe::facade_test {
namespace {

constexpr int kTopK = 3;
constexpr int64_t kWidth = 24;
constexpr int64_t kStride = kWidth + 5;

using Floats = std::vector<float>;

int64_t tokens_of(int rank) { return rank == 1 ? 0 : 7 + 3 * rank; }
float factor_of(int expert) { return static_cast<float>(expert % 4 + 1); }
// E_e(x) = factor x + shift
float shift_of(int64_t h) { return static_cast<float>(h % 3); }

struct Tokens {
  std::vector<int32_t> ids;
  Floats weights, x, dy;  // [T,K], [T,kStride], [T,kStride]
};

Tokens tokens_on(int rank, int num_experts) {
  Tokens tokens;
  for (int64_t t = 0; t < tokens_of(rank); ++t) {
    const Random random(4, "facade", static_cast<uint64_t>(rank * 64 + t));
    for (int k = 0; k < kTopK; ++k) {
      const auto first = random.below(static_cast<uint64_t>(num_experts), 0);
      const bool none = random.below(6, static_cast<uint64_t>(k + 1)) == 0;
      tokens.ids.push_back(none ? -1 : static_cast<int32_t>((first + 2U * static_cast<unsigned>(k)) % num_experts));
      tokens.weights.push_back(static_cast<float>((t + k + rank) % 5 + 1) / 8.0F);
    }
    for (int64_t h = 0; h < kStride; ++h) {
      tokens.x.push_back(static_cast<float>((3 * t + h + rank) % 16 - 8));
      tokens.dy.push_back(static_cast<float>((5 * t + 2 * h + rank) % 8 - 3));
    }
  }
  return tokens;
}

struct Expected {
  Floats y, dx, d_weights;
};

Expected expected_of(const Tokens& tokens) {
  Expected expected;
  const auto num_tokens = static_cast<int64_t>(tokens.ids.size()) / kTopK;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t h = 0; h < kWidth; ++h) {
      float y = 0.0F;
      float dx = 0.0F;
      for (int64_t k = 0; k < kTopK; ++k) {
        const int32_t id = tokens.ids[t * kTopK + k];
        if (id < 0) continue;
        const float weight = tokens.weights[t * kTopK + k];
        y += weight * (factor_of(id) * tokens.x[t * kStride + h] + shift_of(h));
        dx += weight * factor_of(id) * tokens.dy[t * kStride + h];
      }
      expected.y.push_back(y);
      expected.dx.push_back(dx);
    }
    for (int64_t k = 0; k < kTopK; ++k) {
      const int32_t id = tokens.ids[t * kTopK + k];
      float dot = 0.0F;
      for (int64_t h = 0; id >= 0 && h < kWidth; ++h) {
        dot += tokens.dy[t * kStride + h] * (factor_of(id) * tokens.x[t * kStride + h] + shift_of(h));
      }
      expected.d_weights.push_back(dot);
    }
  }
  return expected;
}

Options options_of(int num_ranks, const std::string& strategy, Sums sums = Sums::partial) {
  return {.num_experts = 2 * num_ranks + 1,
          .top_k = kTopK,
          .width = kWidth,
          .max_tokens = 32,
          .strategy = strategy,
          .sums = sums};
}

Dispatcher dispatcher_of(Communicator& world, const Options& options) {
  return make_dispatcher_of({nullptr, world.duplicate("facade"), [] {}}, options, make_cpu_kernels(Precision::fp32));
}

// The experts of this rank; `shift` is 0 for their gradient.
Floats run_experts(const Dispatcher& dispatcher, const Batch& batch, const ConstRows& rows, bool gradient) {
  Floats results(static_cast<size_t>(rows.count * kWidth));
  for (size_t i = 0; i < dispatcher.experts().size(); ++i) {
    for (int32_t place = batch.expert_offsets()[i]; place < batch.expert_offsets()[i + 1]; ++place) {
      for (int64_t h = 0; h < kWidth; ++h) {
        results[place * kWidth + h] =
            factor_of(dispatcher.experts()[i]) * rows.row(place)[h] + (gradient ? 0.0F : shift_of(h));
      }
    }
  }
  return results;
}

// Only the rows: what lies between them must stay.
void expect_rows(const Floats& strided, const Floats& expected, const char* what) {
  const auto count = static_cast<int64_t>(expected.size()) / kWidth;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t h = 0; h < kWidth; ++h) {
      ASSERT_EQ(strided[t * kStride + h], expected[t * kWidth + h]) << what << ", token " << t << ", channel " << h;
    }
    for (int64_t h = kWidth; h < kStride; ++h) ASSERT_EQ(strided[t * kStride + h], -77.0F) << what;
  }
}

struct Forward {
  Tokens tokens;
  Expected expected;
  std::optional<Batch> batch;
  Floats results;
};

Forward forward(Dispatcher& dispatcher, bool from_plan) {
  const int num_experts = dispatcher.options().num_experts;
  Forward run = {tokens_on(dispatcher.rank(), num_experts), {}, {}, {}};
  run.expected = expected_of(run.tokens);
  const int64_t num_tokens = tokens_of(dispatcher.rank());
  Floats x = run.tokens.x;
  const ConstRows x_rows(x.data(), num_tokens, kWidth, kStride);
  if (from_plan) {
    const Plan plan = make_plan(run.tokens.ids, kTopK, num_experts, dispatcher.num_ranks(), dispatcher.rank());
    run.batch.emplace(dispatch(dispatcher, x_rows, plan, run.tokens.weights));
    EXPECT_EQ(run.batch->plan(), plan);
  } else {
    run.batch.emplace(dispatch(dispatcher, x_rows, run.tokens.ids, run.tokens.weights));
  }
  std::fill(x.begin(), x.end(), std::numeric_limits<float>::quiet_NaN());  // the caller may change x now
  run.results = run_experts(dispatcher, *run.batch, run.batch->rows(), /*gradient=*/false);
  return run;
}

void combine_and_check(Forward& run) {
  Floats y(run.tokens.x.size(), -77.0F);
  combine(*run.batch, {run.results, kWidth},
          {y.data(), static_cast<int64_t>(run.tokens.ids.size()) / kTopK, kWidth, kStride});
  expect_rows(y, run.expected.y, "y");
}

void backward_and_check(const Dispatcher& dispatcher, Forward& run) {
  const auto num_tokens = static_cast<int64_t>(run.tokens.ids.size()) / kTopK;
  Batch& batch = *run.batch;
  Floats d_weights(run.tokens.weights.size(), -77.0F);
  combine_backward(batch, {run.tokens.dy.data(), num_tokens, kWidth, kStride}, {run.results, kWidth}, batch.rows(),
                   d_weights);
  EXPECT_EQ(d_weights, run.expected.d_weights);
  const Floats d_rows = run_experts(dispatcher, batch, batch.rows(), /*gradient=*/true);
  Floats dx(run.tokens.x.size(), -77.0F);
  dispatch_backward(batch, {d_rows, kWidth}, {dx.data(), num_tokens, kWidth, kStride});
  expect_rows(dx, run.expected.dx, "dx");
}

TEST(Facade, computes_a_layer_and_its_gradients_by_every_strategy) {
  test::on_ranks([](Communicator& world) {
    const int num_hosts = discover_topology(world).num_hosts();
    for (const std::string strategy : {"auto", "flat", "all_gather", "shared", "hierarchical"}) {
      if (strategy == "shared" && num_hosts > 1) continue;
      for (const Sums sums : {Sums::partial, Sums::slots}) {
        SCOPED_TRACE(strategy);
        Dispatcher dispatcher = dispatcher_of(world, options_of(world.size(), strategy, sums));
        for (const bool from_plan : {false, true}) {
          Forward run = forward(dispatcher, from_plan);
          EXPECT_GT(run.batch->plan().num_dropped() + (world.rank() == 1 ? 1 : 0), 0) << "the fixture masks no slot";
          combine_and_check(run);
          backward_and_check(dispatcher, run);
        }
      }
    }
  });
}

TEST(Facade, keeps_several_batches_apart) {
  test::on_ranks([](Communicator& world) {
    for (const std::string strategy : {"flat", "shared"}) {
      if (strategy == "shared" && discover_topology(world).num_hosts() > 1) continue;
      Dispatcher dispatcher = dispatcher_of(world, options_of(world.size(), strategy));
      Forward first = forward(dispatcher, false);
      { const Forward dropped = forward(dispatcher, false); }
      Forward second = forward(dispatcher, false);
      combine_and_check(second);
      combine_and_check(first);
      backward_and_check(dispatcher, first);
      backward_and_check(dispatcher, second);
    }
  });
}

TEST(Facade, rounds_rows_on_a_narrow_wire) {
  test::on_ranks([](Communicator& world) {
    Options options = options_of(world.size(), "flat");
    options.dispatch_wire = Wire::bf16;
    Dispatcher dispatcher = dispatcher_of(world, options);
    const float value = 1.0F + 0x1p-9F;  // bf16 has 8 bits: rounds to 1
    const Floats x(kWidth, value);
    const std::vector<int32_t> ids = {0, 1, 2};
    const Floats weights(kTopK, 1.0F);
    Batch batch = dispatch(dispatcher, {x, kWidth}, ids, weights);
    for (int64_t p = 0; p < batch.rows().count; ++p) EXPECT_EQ(batch.rows().row(p)[0], 1.0F);
    Floats y(kWidth);
    combine(batch, batch.rows(), {y, kWidth});
    EXPECT_EQ(y[0], 3.0F);
  });
}

// Rows of a device, whose memory the host does not reach.
TEST(Facade, takes_rows_in_memory_of_a_device) {
  test::on_ranks([](Communicator& world) {
    auto twin = test::make_gpu_twin(test::TwinOrder::ascending, test::TwinMemory::own);
    cadre::Memory& memory = twin->memory();
    Options options = options_of(world.size(), "flat");
    options.memory = Memory::device;
    Communicator group(test::make_twin_transport(world.transport()), "facade");
    Dispatcher dispatcher = make_dispatcher_of({nullptr, std::move(group), [] {}}, options, std::move(twin));
    const Tokens tokens = tokens_on(world.rank(), options.num_experts);
    const Expected expected = expected_of(tokens);
    const int64_t num_tokens = tokens_of(world.rank());
    const auto on_device = [&](const Floats& values) {
      Buffer buffer(std::max<size_t>(values.size(), 1) * sizeof(float), memory);
      memory.write(buffer.data(), reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(float));
      return buffer;
    };
    const auto on_host = [&](const float* data, int64_t count) {
      Floats values(static_cast<size_t>(count));
      memory.synchronize();
      memory.read(reinterpret_cast<std::byte*>(values.data()), reinterpret_cast<const std::byte*>(data),
                  values.size() * sizeof(float));
      return values;
    };
    Buffer x = on_device(tokens.x);
    Batch batch = dispatch(dispatcher, {x.as<float>(), num_tokens, kWidth, kStride}, tokens.ids, tokens.weights);
    const Rows rows = batch.rows();
    const Floats came = on_host(rows.data, rows.count * kWidth);
    const Floats results = run_experts(dispatcher, batch, {came, kWidth}, false);
    Buffer device_results = on_device(results);
    Buffer y = on_device(Floats(expected.y.size()));
    combine(batch, {device_results.as<float>(), rows.count, kWidth}, {y.as<float>(), num_tokens, kWidth});
    EXPECT_EQ(on_host(y.as<float>(), num_tokens * kWidth), expected.y);

    Buffer dy = on_device(tokens.dy);
    Floats d_weights(tokens.weights.size(), -77.0F);
    combine_backward(batch, {dy.as<float>(), num_tokens, kWidth, kStride},
                     {device_results.as<float>(), rows.count, kWidth}, rows, d_weights);
    EXPECT_EQ(d_weights, expected.d_weights);
    const Floats d_rows = run_experts(dispatcher, batch, {on_host(rows.data, rows.count * kWidth), kWidth}, true);
    Buffer device_d_rows = on_device(d_rows);
    dispatch_backward(batch, {device_d_rows.as<float>(), rows.count, kWidth}, {y.as<float>(), num_tokens, kWidth});
    EXPECT_EQ(on_host(y.as<float>(), num_tokens * kWidth), expected.dx);
  });
}

TEST(Facade, says_what_is_wrong_with_its_arguments) {
  test::on_one_rank([](Communicator world) {
    const auto text_of = [](const std::function<void()>& call) -> std::string {
      try {
        call();
      } catch (const std::exception& error) {
        return error.what();
      }
      return "no error";
    };
    Dispatcher dispatcher = dispatcher_of(world, options_of(1, "flat"));
    const Floats x(2 * kWidth);
    const std::vector<int32_t> ids(2 * kTopK, 0);
    const Floats weights(2 * kTopK);
    const std::span<const int32_t> few_ids(ids.data(), 5);
    EXPECT_EQ(text_of([&] {
                dispatch(dispatcher, {x, kWidth}, few_ids, weights);
              }),
              "ids has 5 values, must have tokens x top_k = 2 x 3");
    EXPECT_EQ(text_of([&] {
                dispatch(dispatcher, {x.data(), 2, kWidth - 1}, ids, weights);
              }),
              "x is [2,23], must be [2,24]");
    EXPECT_EQ(text_of([&] {
                dispatch(dispatcher, {x.data(), 2, kWidth, 8}, ids, weights);
              }),
              "x: the stride 8 is below the width 24 (hint: strides are counted in floats)");
    const std::vector<int32_t> unknown = {0, 1, 9, 0, 1, 2};
    EXPECT_NE(text_of([&] { dispatch(dispatcher, {x, kWidth}, unknown, weights); }).find("9"), std::string::npos);
    Options options = options_of(1, "fast");
    EXPECT_EQ(text_of([&] { check_options(options, 1); }),
              "strategy = 'fast', allowed: auto | flat | shared | hierarchical | all_gather");
    options = options_of(1, "flat");
    options.top_k = 9;
    EXPECT_EQ(text_of([&] { check_options(options, 1); }), "top_k = 9 of 3 experts, 1 to num_experts");
    options = options_of(1, "flat");
    options.experts_of = {{0, 1}, {2}};
    EXPECT_NE(text_of([&] { check_options(options, 1); }).find("2 lists for 1 ranks"), std::string::npos);
  });
}

TEST(Facade, makes_plans_without_ranks) {
  // The example of comm/exchange/plan.hpp: experts 0 1 on rank 0, 2 3 on rank 1.
  const std::vector<int32_t> ids = {1, 0, 3, 0};
  const Plan plan = make_plan(ids, 2, 4, 2);
  const auto list = [](auto span) { return std::vector<int64_t>(span.begin(), span.end()); };
  EXPECT_EQ(list(plan.row_counts()), (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(list(plan.slot_counts()), (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(list(plan.row_token()), (std::vector<int64_t>{0, 1, 1}));
  EXPECT_EQ(list(plan.row_slots()), (std::vector<int64_t>{0, 2, 3, 4}));
  EXPECT_EQ(list(plan.slots()), (std::vector<int64_t>{0, 1, 3, 2}));
  EXPECT_EQ(list(plan.slot_expert()), (std::vector<int64_t>{1, 0, 0, 1}));
  EXPECT_EQ(plan.num_dropped(), 0);
  EXPECT_NE(plan, make_plan(ids, 2, 4, 2, 0, {{0, 1, 2}, {3}}));
}

TEST(Facade, knows_its_version) { EXPECT_EQ(version(), CADRE_MOE_VERSION); }

}  // namespace
}  // namespace cadre::moe::facade_test
