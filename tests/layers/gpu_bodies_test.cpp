// SPDX-License-Identifier: Apache-2.0
// Bodies of GPU kernels that do what layers/moe and the CPU's fp8 do on the host: the router in one kernel, rounding to fp8;
// and the tiles of attention.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/gpu/attention.hpp"
#include "layers/kernels/gpu/fp8.hpp"
#include "layers/kernels/gpu/router.hpp"
#include "layers/kernels/gpu/staging.hpp"
#include "layers/router/eligibility.hpp"
#include "layers/router/weights.hpp"
#include "tests/support/gpu_twin_machine.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::gpu_bodies_test {
namespace {

using test::TwinMemory;
using test::TwinOrder;

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

// The router piece by piece, as layers/router/router.cpp has it.
struct Pieces {
  Pieces(Arena& arena, const Kernels& kernels, const RouteRule& rule, const Tensor& logits, const Tensor& bias,
         int64_t top_k)
      : scores(arena.take("scores", DType::f32, {logits.dim(0), logits.dim(1)})),
        ids(arena.take("ids", DType::i32, {logits.dim(0), top_k})),
        weights(arena.take("weights", DType::f32, {logits.dim(0), top_k})) {
    rule.softmax ? kernels.softmax(logits, scores) : kernels.sigmoid(logits, scores);
    const Tensor choice = arena.take("choice", DType::f32, {logits.dim(0), logits.dim(1)});
    for (int64_t i = 0; i < scores.numel(); ++i) {
      const float offset = bias.defined() ? bias.data<float>()[i % bias.numel()] : 0.0F;
      choice.data<float>()[i] = scores.data<float>()[i] + offset;
    }
    const GroupLimit limit = {static_cast<int>(rule.groups), static_cast<int>(rule.kept),
                              static_cast<int>(rule.summed)};
    if (limit.limits()) limit_to_groups(limit, choice);
    kernels.top_k(choice, Tensor(), ids);
    for (int64_t i = 0; i < ids.numel(); ++i) {
      int32_t& id = ids.data<int32_t>()[i];
      if (!(choice.data<float>()[i / top_k * logits.dim(1) + id] > -INFINITY)) id = -1;
    }
    routing_weights({.renormalise = rule.renormalise, .scale = rule.scale}, scores, ids, weights);
  }
  Tensor scores, ids, weights;
};

// Tiles of attention: every query of every head is in one, which ends with the last key that it sees, begins where its first
// row lies, and has no more scores than there is room for.
void expect_tiles_to_cover(const AttentionShape& shape) {
  const gpu::AttentionPlan plan(shape);
  constexpr int64_t kDim = 3;
  std::vector<int> covered(static_cast<size_t>(shape.batch * shape.q_len * shape.num_heads));
  gpu::each_tile(plan, [&](const gpu::AttentionTile& tile) {
    ASSERT_TRUE(tile.count == 1 || tile.count * tile.rows * tile.row_floats() <= gpu::kScoreFloats);
    ASSERT_EQ(tile.num_seen(tile.rows - 1), tile.keys);
    ASSERT_EQ(tile.query_start(kDim), tile.output_row(0) * kDim);
    const gpu::MatrixStrides queries = plan.query_strides(kDim);
    const gpu::MatrixStrides keys = plan.key_strides(kDim);
    for (int64_t row = 0; row < tile.count * tile.rows; ++row) {
      const int64_t start = tile.query_start(kDim) + row / tile.rows * queries.matrix + row % tile.rows * queries.row;
      ASSERT_EQ(start, tile.output_row(row) * kDim);
      const int64_t kv_head = tile.head_of(row) / (shape.num_heads / shape.num_kv_heads);
      ASSERT_EQ(tile.key_start(shape.kv_stride, kDim) + row / tile.rows * keys.matrix,
                (tile.sequence_of(row) * shape.kv_stride * shape.num_kv_heads + kv_head) * kDim);
      ASSERT_EQ(tile.num_seen(row), shape.kv_len - shape.q_len + tile.query_of(row) + 1);
      ++covered[static_cast<size_t>(tile.output_row(row))];
    }
  });
  EXPECT_EQ(std::ranges::count(covered, 1), static_cast<int64_t>(covered.size()));
}

TEST(GpuAttention, TilesCoverEveryQueryOnce) {
  const auto shape = [](int64_t batch, int64_t q_len, int64_t kv_len, int64_t heads, int64_t kv_heads) {
    return AttentionShape{batch, q_len, kv_len, kv_len + 5, heads, kv_heads, 3, 3, 1.0};
  };
  expect_tiles_to_cover(shape(2, 4096, 4096, 16, 16));  // some heads of a sequence at once
  expect_tiles_to_cover(shape(2, 600, 700, 12, 3));     // heads of a key one after the other
  expect_tiles_to_cover(shape(3, 1, 90, 12, 3));        // in decoding, together
  expect_tiles_to_cover(shape(5, 7, 5000, 128, 1));     // latent attention
  expect_tiles_to_cover(shape(70, 1, 40'000, 128, 1));  // some sequences at once
  expect_tiles_to_cover(shape(2, 3, 3, 1, 1));
}

// With bf16 in the products and operands that have those bits, what is rounded are probabilities and gradients of scores:
// by 2^-9 of themselves each, at random. Decoding reads few rows of queries, and rounds nothing.
TEST(GpuAttention, RoundsProbabilitiesToBf16) {
  for (const int64_t q_len : {int64_t{40}, int64_t{1}}) {
    const AttentionShape shape = {2, q_len, 60, 60, 4, 2, 24, 24, 0.2};
    Arena arena(Arena::Mode::real, /*poison=*/true);
    const auto take = [&](int64_t rows, int64_t heads) { return arena.take("rows", DType::f32, {rows, heads, 24}); };
    uint64_t next_id = 0;
    const auto random = [&](int64_t rows, int64_t heads) {
      const Tensor tensor = take(rows, heads);
      test::fill_random(tensor, next_id++, 1.0);
      for (int64_t i = 0; i < tensor.numel(); ++i) {
        float& value = tensor.data<float>()[i];
        value = to_float(to_bf16(value));
      }
      return tensor;
    };
    const Tensor q = random(2 * q_len, 4);
    const Tensor k = random(2 * 60, 2);
    const Tensor v = random(2 * 60, 2);
    const Tensor dout = random(2 * q_len, 4);
    std::vector<std::vector<double>> results[2];
    for (const auto& kernels :
         {make_reference_kernels(), test::make_gpu_twin(TwinOrder::ascending, TwinMemory::copied, Precision::bf16)}) {
      const bool is_twin = kernels->name() != make_reference_kernels()->name();
      const Tensor lse = arena.take("lse", DType::f32, {2, 4, q_len});
      const Tensor out = take(2 * q_len, 4);
      const Tensor grads[] = {take(2 * q_len, 4), take(2 * 60, 2), take(2 * 60, 2)};
      kernels->attention(shape, q, k, v, out, lse);
      kernels->attention_grad(shape, q, k, v, out, lse, dout, grads[0], grads[1], grads[2]);
      kernels->synchronize();
      for (const Tensor& result : {out, grads[0], grads[1], grads[2]}) {
        results[is_twin ? 1 : 0].push_back(test::values_of(result));
      }
    }
    for (size_t i = 0; i < results[0].size(); ++i) {
      double difference = 0.0;
      double norm = 0.0;
      for (size_t j = 0; j < results[0][i].size(); ++j) {
        difference += std::pow(results[0][i][j] - results[1][i][j], 2);
        norm += std::pow(results[0][i][j], 2);
      }
      const double relative = std::sqrt(difference / norm);
      EXPECT_LT(relative, q_len == 1 ? 1e-5 : 0x1p-8) << "result " << i;
      EXPECT_TRUE(q_len == 1 || relative > 0x1p-12) << "result " << i << " was not rounded";
    }
  }
}

// 10 experts in 4 groups are 3 3 2 2; 8 of 10 experts are more than one kept group has. Several bins of experts, and a bin
// that is not full, in 300.
TEST(GpuRouterBodies, IsThePiecesOfTheRouter) {
  struct Case {
    int64_t experts, groups, kept, summed, top_k;
  };
  const auto kernels = test::make_gpu_twin(TwinOrder::descending, TwinMemory::copied);
  int64_t num_limited = 0;
  for (const Case& c :
       {Case{8, 1, 1, 1, 2}, Case{10, 4, 2, 1, 3}, Case{10, 4, 1, 2, 8}, Case{33, 1, 1, 1, 33}, Case{300, 7, 3, 2, 12},
        Case{256, 8, 4, 2, 8}, Case{1024, 1, 1, 1, 8}, Case{1000, 7, 3, 2, 8}}) {
    for (const bool softmax : {false, true}) {
      for (const bool with_bias : {false, true}) {
        Arena arena(Arena::Mode::real, true);
        const Tensor logits = test::random_tensor(arena, DType::f32, {40, c.experts}, 1);
        for (int64_t i = 0; i < logits.numel(); ++i) {  // coarse, so that there are ties
          logits.data<float>()[i] = std::round(2.0F * logits.data<float>()[i]) / 2.0F;
        }
        const Tensor bias = with_bias ? test::random_tensor(arena, DType::f32, {c.experts}, 2) : Tensor();
        const RouteRule rule = {.softmax = softmax,
                                .groups = c.groups,
                                .kept = c.kept,
                                .summed = c.summed,
                                .renormalise = !softmax,
                                .scale = 2.5};
        const Pieces pieces(arena, *kernels, rule, logits, bias, c.top_k);
        const Tensor scores = arena.take("scores", DType::f32, {40, c.experts});
        const Tensor ids = arena.take("ids", DType::i32, {40, c.top_k});
        const Tensor weights = arena.take("weights", DType::f32, {40, c.top_k});
        const Tensor not_finite = arena.take("not finite", DType::i32, {40});
        ASSERT_TRUE(kernels->can_route(rule, c.experts));
        kernels->route(rule, logits, bias, {scores, ids, weights, not_finite, {}, {}});
        EXPECT_TRUE(same_bits(scores, pieces.scores)) << c.experts << " experts";
        EXPECT_EQ(test::values_of(ids), test::values_of(pieces.ids)) << c.experts << " experts";
        EXPECT_TRUE(same_bits(weights, pieces.weights)) << c.experts << " experts";
        num_limited += std::ranges::count(test::values_of(ids), -1.0);
      }
    }
  }
  EXPECT_GT(num_limited, 0);
}

TEST(GpuRouterBodies, NeverChoosesNaN) {
  const auto kernels = test::make_gpu_twin(TwinOrder::ascending, TwinMemory::reached);
  Arena arena(Arena::Mode::real, true);
  const Tensor logits = test::random_tensor(arena, DType::f32, {2, 40}, 1);
  for (const int64_t i : {3, 5, 35, 39}) logits.data<float>()[i] = i < 20 ? NAN : -NAN;  // of the second token all
  for (int64_t i = 40; i < 80; ++i) logits.data<float>()[i] = NAN;
  for (const int64_t kept : {1, 2}) {
    const RouteRule rule = {.groups = 2, .kept = kept, .summed = 2};
    const Tensor ids = arena.take("ids", DType::i32, {2, 40});
    const Tensor weights = arena.take("weights", DType::f32, {2, 40});
    const Tensor not_finite = arena.take("not finite", DType::i32, {2});
    kernels->route(rule, logits, Tensor(),
                   {arena.take("scores", DType::f32, {2, 40}), ids, weights, not_finite, {}, {}});
    kernels->synchronize();
    const std::vector<double> chosen = test::values_of(ids);
    EXPECT_EQ(std::ranges::count(chosen.begin(), chosen.begin() + 40, -1.0), kept == 2 ? 4 : 22);
    for (const double nan : {3.0, 5.0, 35.0, 39.0}) EXPECT_EQ(std::ranges::count(chosen, nan), 0);
    EXPECT_EQ(std::ranges::count(chosen.begin() + 40, chosen.end(), -1.0), 40);
    for (int64_t i = 40; i < 80; ++i) EXPECT_EQ(weights.data<float>()[i], 0.0F);
  }
}

TEST(GpuRouterBodies, LeavesToThePiecesWhatItHasNoRoomFor) {
  const auto kernels = test::make_gpu_twin(TwinOrder::ascending, TwinMemory::reached);
  EXPECT_TRUE(kernels->can_route({}, 1024));
  EXPECT_FALSE(kernels->can_route({}, 1025));
  EXPECT_FALSE(kernels->can_route({.groups = 2, .kept = 1, .summed = 3}, 16));
}

TEST(GpuRanges, ContainWhatLiesWithinOneAllocation) {
  std::vector<std::byte> memory(100);
  const std::byte* at = memory.data();
  gpu::AddressRanges ranges;
  EXPECT_FALSE(ranges.contain(at, 1));
  ranges.add(at + 10, 20);
  ranges.add(at + 30, 5);
  EXPECT_TRUE(ranges.contain(at + 10, 20));
  EXPECT_TRUE(ranges.contain(at + 29, 1));
  EXPECT_TRUE(ranges.contain(at + 34, 1));
  EXPECT_TRUE(ranges.contain(at, 0));
  EXPECT_FALSE(ranges.contain(at + 9, 1));
  EXPECT_FALSE(ranges.contain(at + 35, 1));
  EXPECT_FALSE(ranges.contain(at + 29, 2)) << "two allocations are not one";
  ranges.remove(at + 10);
  EXPECT_FALSE(ranges.contain(at + 10, 1));
  EXPECT_TRUE(ranges.contain(at + 30, 5));
}

// A device that is as far as it is told.
struct CountingQueue {
  int told = 0;
  int done = 0;
  int waits = 0;
  int mark() const { return told; }
  bool is_past(int mark) const { return done >= mark; }
  void wait_for(int mark) {
    ++waits;
    done = std::max(done, mark);
  }
};

TEST(GpuStaging, IsUsedAgainOnceTheDeviceIsPastIt) {
  CountingQueue queue;
  gpu::Staging<int> staging(host_memory(), 1024, 3);
  std::byte* const first = staging.take(queue, 1000);
  ++queue.told;
  std::byte* const second = staging.take(queue, 1000);
  EXPECT_NE(second, first) << "the device has not copied from it";
  ++queue.told;
  queue.done = 1;
  EXPECT_EQ(staging.take(queue, 500), first);
  EXPECT_EQ(staging.take(queue, 512), first + 512) << "what is left of a piece is used";
  ++queue.told;
  EXPECT_NE(staging.take(queue, 1024), second);
  ++queue.told;
  EXPECT_EQ(queue.waits, 0);
  EXPECT_EQ(staging.take(queue, 1), second) << "of three pieces the first, for which it waits";
  EXPECT_EQ(queue.waits, 1);
  EXPECT_EQ(queue.done, 2);
}

TEST(GpuStaging, HasRoomForMoreThanAPiece) {
  CountingQueue queue;
  gpu::Staging<int> staging(host_memory(), 1024, 3);
  std::byte* const small = staging.take(queue, 1);
  ++queue.told;  // it copies from there, and has not done so
  std::byte* const large = staging.take(queue, 5000);
  std::memset(small, 1, 1024);
  std::memset(large, 2, 5000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % 64, 0U);
  EXPECT_EQ(small[1023], std::byte{1});
}

// Codes and scales are those of the CPU, tile by tile; values come back as code x scale.
TEST(GpuFp8, RoundsAsTheHostDoes) {
  struct Case {
    int64_t tile_rows, tile_columns;
    void (*on_host)(const float*, int64_t, int64_t, Fp8Scale, float*, float*);
  };
  constexpr int64_t kRows = 200;
  constexpr int64_t kWidth = 300;
  Arena arena;
  const Tensor values = test::random_tensor(arena, DType::f32, {kRows, kWidth}, 1);
  for (int64_t i = 0; i < values.numel(); ++i) values.data<float>()[i] *= std::exp2(static_cast<float>(i % 29) - 20);
  values.data<float>()[777] = NAN;
  for (const Case& c : {Case{1, 128, round_tiles_to_fp8}, Case{128, 1, round_column_tiles_to_fp8},
                        Case{128, 128, round_blocks_to_fp8}}) {
    for (const Fp8Scale kind : {Fp8Scale::fp32, Fp8Scale::ue8m0}) {
      const auto num_scales = static_cast<size_t>((kRows + c.tile_rows - 1) / c.tile_rows *
                                                  ((kWidth + c.tile_columns - 1) / c.tile_columns));
      std::vector<float> host_codes(kRows * kWidth), host_scales(num_scales), scales(num_scales, -1.0F);
      std::vector<uint8_t> codes(kRows * kWidth);
      c.on_host(values.data<float>(), kRows, kWidth, kind, host_codes.data(), host_scales.data());

      test::TwinMachine machine(TwinOrder::descending, TwinMemory::reached);
      const int64_t across = gpu::tiles_of(kWidth, c.tile_columns);
      const gpu::ToFp8 of = {values.data<float>(),      codes.data(), scales.data(), kRows, kWidth, kind,
                             {kRows, kWidth, across, 1}};
      const gpu::QuantiseFp8 quantise = {of, c.tile_rows, c.tile_columns};
      ASSERT_EQ(static_cast<size_t>(quantise.num_blocks()), num_scales);
      machine.blocks(quantise.num_blocks(), 0, quantise);
      machine.wait();
      EXPECT_EQ(std::memcmp(scales.data(), host_scales.data(), num_scales * sizeof(float)), 0);

      const Tensor back = arena.take("back", DType::f32, {kRows, kWidth});
      machine.elements(back.numel(), gpu::DequantiseFp8<float>{codes.data(), scales.data(), back.data<float>(), kWidth,
                                                               c.tile_rows, c.tile_columns});
      machine.wait();
      for (int64_t i = 0; i < back.numel(); ++i) {
        const auto at = static_cast<size_t>(i);
        ASSERT_EQ(std::isnan(from_fp8(codes[at])), std::isnan(host_codes[at])) << i;
        if (std::isnan(host_codes[at])) continue;
        ASSERT_EQ(from_fp8(codes[at]), host_codes[at]) << i;
        const int64_t tile =
            i / kWidth / c.tile_rows * ((kWidth + c.tile_columns - 1) / c.tile_columns) + i % kWidth / c.tile_columns;
        ASSERT_EQ(back.data<float>()[i], host_codes[at] * host_scales[static_cast<size_t>(tile)]) << i;
      }
    }
  }
}

}  // namespace
}  // namespace cadre::gpu_bodies_test
