// SPDX-License-Identifier: Apache-2.0
// Weights in fp8 with scales by block: read from files of another program, wherever the scales lie, and written by
// export; what comes back is the value that the definition gives, bit for bit.
#include "runtime/checkpoint/export.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/checkpoint/stored_values.hpp"
#include "tests/support/checkpoints.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::export_test {
namespace {

namespace fs = std::filesystem;
using namespace test;
using testing::AllOf;
using testing::HasSubstr;

// A weight [130, 260]: 2 x 3 blocks, of which the last are narrow. Codes without NaN, and a scale for each block.
class StoredValuesTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 130;
  static constexpr int64_t kWidth = 260;

  StoredValuesTest() : codes_(kRows * kWidth), scales_{0.5F, 3.0F, 0.125F, 7e-5F, 1.0F, 11.0F} {
    for (size_t i = 0; i < codes_.size(); ++i) codes_[i] = static_cast<uint8_t>(i % 127 + (i % 2) * 128);
  }
  // The weight in one file and its scales, if any, in the other.
  void write(DType scale_dtype, std::vector<int64_t> scale_extents, bool with_scales = true) {
    const std::vector<TensorSource> weight = {{"w", DType::fp8, {kRows, kWidth}, std::as_bytes(std::span(codes_))}};
    const auto bytes = std::as_bytes(std::span(scales_))
                           .first(size_of(scale_dtype) * static_cast<size_t>(scale_extents[0] * scale_extents[1]));
    std::vector<TensorSource> scales = {{"w_scale_inv", scale_dtype, std::move(scale_extents), bytes}};
    WeightMap weight_map = {{"w", "a.safetensors"}, {"w_scale_inv", "b.safetensors"}};
    if (!with_scales) weight_map.erase("w_scale_inv");
    write_safetensors(directory_ / "a.safetensors", weight);
    write_safetensors(directory_ / "b.safetensors", scales);
    write_index(directory_.path(), weight_map, 0);
  }
  std::string error() {
    return error_of([&] {
      ShardedReader reader(directory_.path());
      StoredValues(reader, directory_.path().string(), "w");
    });
  }

  TemporaryDirectory directory_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
};

TEST_F(StoredValuesTest, EveryBlockHasItsScaleFromAnotherFile) {
  write(DType::f32, {2, 3});
  ShardedReader reader(directory_.path());
  const StoredValues stored(reader, directory_.path().string(), "w");
  ASSERT_EQ(stored.count(), codes_.size());
  std::vector<float> values(codes_.size(), NAN);
  stored.read(values.data());
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const auto at = static_cast<size_t>(row * kWidth + i);
      const size_t block = (row < 128 ? 0U : 3U) + (i < 128 ? 0U : i < 256 ? 1U : 2U);
      ASSERT_EQ(values[at], from_fp8(codes_[at]) * scales_[block]) << row << "," << i;
    }
  }
}

TEST_F(StoredValuesTest, ScalesThatAreMissingOrDoNotFit) {
  write(DType::f32, {2, 3}, /*with_scales=*/false);
  EXPECT_THAT(error(), HasSubstr("holds no tensor \"w_scale_inv\""));
  write(DType::f32, {3, 2});
  EXPECT_THAT(error(), AllOf(HasSubstr("\"w_scale_inv\" is F32[3,2]"), HasSubstr("F32[2,3]"), HasSubstr("128")));
  write(DType::bf16, {2, 3});
  EXPECT_THAT(error(), HasSubstr("\"w_scale_inv\" is BF16[2,3]"));
}

class ExportTest : public testing::Test {
 protected:
  // The values of every parameter, by name.
  static std::map<std::string, std::vector<double>> values_in(const fs::path& directory) {
    const ModelRank rank(small_config(), 1, 0);
    poison(rank);
    load_checkpoint(directory, rank.store, nullptr);
    std::map<std::string, std::vector<double>> values;
    for (const auto& [name, memory] : name_values(rank.store, any_parameter)) values[name] = values_of(memory);
    return values;
  }

  TemporaryDirectory root_;
  fs::path checkpoint_ = save_alone(root_.path());
  std::map<std::string, std::vector<double>> original_ = values_in(checkpoint_);
};

// All weights of the small model lie in one block.
TEST_F(ExportTest, Fp8HoldsTheNearestCodesAndTheRestInBf16) {
  for (const Fp8Scale kind : {Fp8Scale::fp32, Fp8Scale::ue8m0}) {
    const fs::path out = root_ / (kind == Fp8Scale::fp32 ? "fp8" : "ue8m0");
    const ExportSummary summary = export_checkpoint(checkpoint_, out, ExportFormat::fp8, kind);
    int64_t in_fp8 = 0;
    for (const auto& [name, values] : values_in(out)) {
      const std::vector<double>& before = original_.at(name);
      const bool is_projection = name.ends_with("_proj.weight");
      in_fp8 += is_projection ? 1 : 0;
      double amax = 0.0;
      for (const double value : before) amax = std::max(amax, std::fabs(value));
      const float scale = fp8_scale(static_cast<float>(amax), kind);
      for (size_t i = 0; i < values.size(); ++i) {
        const auto value = static_cast<float>(before[i]);
        float expected = to_float(to_bf16(value));
        if (is_projection) expected = from_fp8(to_fp8(value / scale)) * scale;
        if (name.ends_with("correction_bias")) expected = value;
        ASSERT_EQ(values[i], expected) << name << " " << i;
      }
    }
    EXPECT_EQ(summary.fp8_tensors, in_fp8);
    EXPECT_EQ(summary.tensors, static_cast<int64_t>(original_.size()));
    EXPECT_GT(in_fp8, 30);

    const auto config = nlohmann::json::parse(read_file(out / "config.json"));
    EXPECT_EQ(config["quantization_config"]["quant_method"], "fp8");
    EXPECT_EQ(config["quantization_config"]["weight_block_size"], (nlohmann::json{128, 128}));
    EXPECT_EQ(config["quantization_config"].contains("scale_fmt"), kind == Fp8Scale::ue8m0);
    EXPECT_EQ(read_model_config(out), small_config());
    const auto index = nlohmann::json::parse(read_file(out / kIndexFile));
    EXPECT_EQ(index["metadata"]["total_size"], summary.bytes);
    EXPECT_TRUE(index["weight_map"].contains(std::string(kSomeExpert) + "_scale_inv"));
  }
}

TEST_F(ExportTest, WhatWasFp8ComesBackAsFp32BitForBit) {
  export_checkpoint(checkpoint_, root_ / "fp8", ExportFormat::fp8, Fp8Scale::fp32);
  export_checkpoint(root_ / "fp8", root_ / "fp32", ExportFormat::fp32, Fp8Scale::fp32);
  EXPECT_EQ(values_in(root_ / "fp32"), values_in(root_ / "fp8"));
  const auto config = nlohmann::json::parse(read_file(root_ / "fp32" / "config.json"));
  EXPECT_FALSE(config.contains("quantization_config"));
  EXPECT_EQ(config["torch_dtype"], "float32");
  ShardedReader reader(root_ / "fp32");
  EXPECT_FALSE(reader.find(std::string(kSomeExpert) + "_scale_inv").has_value());
  export_checkpoint(checkpoint_, root_ / "same", ExportFormat::fp32, Fp8Scale::fp32);
  EXPECT_EQ(values_in(root_ / "same"), original_);
}

TEST_F(ExportTest, RefusesAPlaceThatIsTakenAndADamagedSource) {
  EXPECT_THAT(error_of([&] { export_checkpoint(checkpoint_, root_.path(), ExportFormat::bf16, Fp8Scale::fp32); }),
              HasSubstr("is there already"));
  write_file(checkpoint_ / "config.json", "{}");
  EXPECT_THAT(error_of([&] { export_checkpoint(checkpoint_, root_ / "x", ExportFormat::bf16, Fp8Scale::fp32); }),
              HasSubstr("config.json"));
  EXPECT_FALSE(fs::exists(root_ / "x"));
}

TEST(IsFp8Weight, ProjectionsOnly) {
  const std::string layer = "model.layers.3.";
  for (const char* name :
       {"self_attn.q_a_proj.weight", "self_attn.kv_a_proj_with_mqa.weight", "self_attn.o_proj.weight",
        "mlp.experts.7.gate_proj.weight", "mlp.shared_experts.down_proj.weight"}) {
    EXPECT_TRUE(is_fp8_weight(layer + name, 2)) << name;
  }
  for (const char* name : {"mlp.gate.weight", "eh_proj.weight", "input_layernorm.weight", "embed_tokens.weight",
                           "shared_head.head.weight", "self_attn.q_a_layernorm.weight"}) {
    EXPECT_FALSE(is_fp8_weight(layer + name, 2)) << name;
  }
  EXPECT_FALSE(is_fp8_weight("lm_head.weight", 2));
}

// --- moments in bf16 ------------------------------------------------------------------------------------------------

TEST(Bf16Moments, AreHalfAsLargeAndComeBackFromACheckpointBitForBit) {
  const TemporaryDirectory root;
  const ModelRank rank(small_config(), 1, 0);
  ModelRank again(small_config(), 1, 0);
  fill(rank);
  TrainConfig config;
  config.moments = "bf16";
  Optimizer saved(const_cast<ParameterStore&>(rank.store), config);
  Optimizer loaded(again.store, config);
  for (const auto& [name, memory] : name_moments(saved, any_parameter)) {
    ASSERT_EQ(memory.dtype(), DType::bf16);
    for (int64_t i = 0; i < memory.numel(); ++i) memory.data<bf16>()[i] = to_bf16(element(name, i));
  }
  fs::path path;
  test::on_one_rank([&](const Communicator& world) {
    path = save_checkpoint({world, any_parameter, kDeadlineSeconds}, root.path(), state_at(1, small_config()),
                           rank.store, saved, {.newest = 1});
  });
  load_checkpoint(path, again.store, &loaded);
  const std::vector<NamedTensor> before = name_moments(saved, any_parameter);
  const std::vector<NamedTensor> after = name_moments(loaded, any_parameter);
  ASSERT_EQ(before.size(), after.size());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(std::memcmp(before[i].memory.raw(), after[i].memory.raw(), before[i].memory.bytes()), 0)
        << before[i].name;
  }
  ShardedReader reader(path / "optimizer");
  EXPECT_EQ(reader.at(std::string(kSomeExpert) + ".exp_avg").entry.dtype_name, "BF16");
}

}  // namespace
}  // namespace cadre::export_test
