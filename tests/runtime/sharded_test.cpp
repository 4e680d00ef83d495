// SPDX-License-Identifier: Apache-2.0
// One file or several with an index: the same tensors, files opened only when needed, and no index that lies, lacks a
// file or leads out of its directory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/checkpoint/safetensors.hpp"
#include "tests/support/files.hpp"

namespace cadre::sharded_test {
namespace {

using test::error_of;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;
using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kFirst = "model-00001-of-000002.safetensors";
constexpr const char* kSecond = "model-00002-of-000002.safetensors";

class ShardedTest : public testing::Test {
 protected:
  void write_shard(const std::string& file, const std::vector<std::pair<std::string, const float*>>& tensors) {
    std::vector<TensorSource> sources;
    for (const auto& [name, value] : tensors) {
      sources.push_back({name, DType::f32, {1}, std::as_bytes(std::span(value, 1))});
    }
    write_safetensors(directory_ / file, sources);
  }
  void write_shards() {
    write_shard(kFirst, {{"a", &values_[0]}, {"b", &values_[1]}});
    write_shard(kSecond, {{"c", &values_[2]}});
  }
  void write_weight_map(const nlohmann::json& weight_map) {
    write_file(directory_ / "model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
  }
  std::string open_error() {
    return error_of([&] { ShardedReader reader(directory_.path()); });
  }
  static float value_of(const MappedTensor& tensor) {
    float value = 0;
    EXPECT_EQ(tensor.bytes.size(), sizeof value);
    std::memcpy(&value, tensor.bytes.data(), sizeof value);
    return value;
  }

  TemporaryDirectory directory_;
  std::array<float, 3> values_ = {1.5F, -2.0F, 3.25F};
};

TEST_F(ShardedTest, ReadsASingleFile) {
  write_shard("model.safetensors", {{"a", &values_[0]}, {"b", &values_[1]}});
  ShardedReader reader(directory_.path());
  EXPECT_EQ(reader.weight_map().size(), 2U);
  EXPECT_EQ(value_of(reader.at("b")), -2.0F);
  EXPECT_FALSE(reader.find("c").has_value());
}

TEST_F(ShardedTest, ReadsSeveralFilesThroughTheIndex) {
  write_shards();
  const FileDigest digest = write_index(directory_.path(), {{"a", kFirst}, {"b", kFirst}, {"c", kSecond}}, 12);
  EXPECT_EQ(digest, digest_file(directory_ / "model.safetensors.index.json"));
  const auto index = nlohmann::json::parse(read_file(directory_ / "model.safetensors.index.json"));
  EXPECT_EQ(index, (nlohmann::json{{"metadata", {{"total_size", 12}}},
                                   {"weight_map", {{"a", kFirst}, {"b", kFirst}, {"c", kSecond}}}}));
  ShardedReader reader(directory_.path());
  EXPECT_EQ(value_of(reader.at("c")), 3.25F);
  EXPECT_EQ(value_of(reader.at("a")), 1.5F);
  EXPECT_EQ(reader.at("a").entry.name, "a");
  EXPECT_FALSE(reader.find("d").has_value());
  EXPECT_THAT(error_of([&] { reader.at("d"); }), AllOf(HasSubstr("\"d\""), HasSubstr(directory_.path().string())));
}

TEST_F(ShardedTest, OpensAFileOnlyForItsTensors) {
  write_shards();
  write_index(directory_.path(), {{"a", kFirst}, {"c", kSecond}}, 8);
  write_file(directory_ / kSecond, "damaged");
  ShardedReader reader(directory_.path());
  EXPECT_EQ(value_of(reader.at("a")), 1.5F);
  EXPECT_THAT(error_of([&] { reader.find("c"); }), HasSubstr(kSecond));
}

TEST_F(ShardedTest, RefusesAnIndexThatDoesNotFit) {
  EXPECT_THAT(open_error(), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
  write_shards();
  write_weight_map({{"a", "model-00003-of-000002.safetensors"}});
  EXPECT_THAT(open_error(), AllOf(HasSubstr("model-00003-of-000002.safetensors"), HasSubstr("missing")));
  write_weight_map({{"a", kFirst}, {"c", kFirst}});
  ShardedReader reader(directory_.path());
  EXPECT_THAT(error_of([&] { reader.find("a"); }), AllOf(HasSubstr(kFirst), HasSubstr("\"c\"")));
}

TEST_F(ShardedTest, RefusesPaths) {
  write_shards();
  std::filesystem::create_directory(directory_ / "sub");
  std::filesystem::copy_file(directory_ / kFirst, directory_ / "sub/x");
  std::filesystem::copy_file(directory_ / kFirst, directory_ / "x..y");
  const std::vector<std::string> names = {
      "", ".", "..", "sub/x", "../x", "x..y", "sub\\x", (directory_ / kFirst).string(), std::string("x\0y", 3)};
  for (const std::string& name : names) {
    write_weight_map({{"a", name}});
    EXPECT_THAT(open_error(), HasSubstr("not the plain name of a file")) << name;
  }
}

TEST_F(ShardedTest, RefusesAnIndexThatIsNone) {
  const auto error_with = [&](const std::string& text) {
    write_file(directory_ / "model.safetensors.index.json", text);
    return open_error();
  };
  EXPECT_THAT(error_with(""), HasSubstr("is not JSON"));
  EXPECT_THAT(error_with("{"), HasSubstr("is not JSON"));
  EXPECT_THAT(error_with("[]"), HasSubstr("no object \"weight_map\""));
  EXPECT_THAT(error_with(R"({"metadata":{}})"), HasSubstr("no object \"weight_map\""));
  EXPECT_THAT(error_with(R"({"weight_map":[]})"), HasSubstr("no object \"weight_map\""));
  EXPECT_THAT(error_with(R"({"weight_map":{"a":1}})"), HasSubstr("no file name for \"a\""));
}

}  // namespace
}  // namespace cadre::sharded_test
