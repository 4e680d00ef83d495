// SPDX-License-Identifier: Apache-2.0
// Checkpoints that are damaged, of another program or of another model: what is refused, that a refusal changes
// nothing, and what can be loaded all the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "tests/support/checkpoints.hpp"
#include "tests/support/files.hpp"

namespace cadre::model_checkpoint_load_test {
namespace {

namespace fs = std::filesystem;
using namespace test;
using testing::AllOf;
using testing::HasSubstr;

class LoadTest : public testing::Test {
 protected:
  LoadTest() { poison(rank_); }

  // Expects a refusal that touches nothing, and returns its text.
  std::string refusal() {
    const uint64_t version = rank_.store.parameters().front()->version;
    std::string text = error_of([&] { load_checkpoint(path_, rank_.store, &rank_.optimizer); });
    for (const NamedTensor& tensor : rank_.tensors()) EXPECT_TRUE(is_poison(tensor)) << tensor.name;
    EXPECT_EQ(rank_.store.parameters().front()->version, version);
    return text;
  }
  void flip_last_byte(const fs::path& file) {
    std::string content = read_file(file);
    content.back() = static_cast<char>(content.back() ^ 1);
    write_file(file, content);
  }
  // Replaces the file of values by one of another program, with the tensors as `change` leaves them.
  template <class Change>
  void make_foreign(Change&& change) {
    std::vector<TensorSource> sources;
    {
      const SafetensorsReader reader(path_ / kShard);
      for (const TensorEntry& entry : reader.entries()) {
        const auto bytes = reader.bytes(entry);
        contents_[entry.name].assign(bytes.begin(), bytes.end());
        sources.push_back({entry.name, *entry.dtype, entry.shape, contents_[entry.name]});
      }
    }
    change(sources);
    fs::remove(path_ / "cadre.json");
    fs::remove(path_ / kShard);
    fs::remove(path_ / "model.safetensors.index.json");
    write_safetensors(path_ / "model.safetensors", sources);
  }
  std::string refusal_of_values() {
    return error_of([&] { load_checkpoint(path_, rank_.store, nullptr); });
  }
  static TensorSource& find(std::vector<TensorSource>& sources, std::string_view name) {
    return *std::ranges::find(sources, name, &TensorSource::name);
  }

  static constexpr const char* kShard = "model-00001-of-00001.safetensors";
  TemporaryDirectory root_;
  fs::path path_ = save_alone(root_.path());
  ModelRank rank_{small_config(), 2, 1};
  std::map<std::string, std::vector<std::byte>> contents_;
};

TEST_F(LoadTest, NoSuchDirectory) {
  path_ = root_ / "step_00000009";
  EXPECT_THAT(refusal(), AllOf(HasSubstr("step_00000009"), HasSubstr("not a directory")));
}

TEST_F(LoadTest, AFlippedByteOfValues) {
  flip_last_byte(path_ / kShard);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(kShard), HasSubstr("damaged"), HasSubstr("checksum")));
}

TEST_F(LoadTest, AFlippedByteOfMoments) {
  flip_last_byte(path_ / "optimizer" / kShard);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(std::string("optimizer/") + kShard), HasSubstr("checksum")));
}

TEST_F(LoadTest, ATruncatedFile) {
  const fs::path file = path_ / "optimizer" / kShard;
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(std::string("optimizer/") + kShard), HasSubstr("bytes")));
}

TEST_F(LoadTest, AChangedIndex) {
  flip_last_byte(path_ / "model.safetensors.index.json");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("model.safetensors.index.json"), HasSubstr("checksum")));
}

TEST_F(LoadTest, AFileThatTheManifestDoesNotKnow) {
  fs::copy_file(path_ / kShard, path_ / "model.safetensors");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("cadre.json"), HasSubstr("model.safetensors")));
}

TEST_F(LoadTest, ATensorIsMissing) {
  const ModelRank more_experts(small_config(11), 1, 0);
  EXPECT_THAT(error_of([&] { load_checkpoint(path_, more_experts.store, nullptr); }),
              AllOf(HasSubstr(path_.string()), HasSubstr("model.layers.1.mlp.")));
  make_foreign([](std::vector<TensorSource>& sources) {
    std::erase_if(sources, [](const TensorSource& source) { return source.name == kSomeExpert; });
  });
  EXPECT_THAT(refusal_of_values(), AllOf(HasSubstr(path_.string()), HasSubstr(kSomeExpert), HasSubstr("no tensor")));
}

TEST_F(LoadTest, AnotherShape) {
  ModelConfig config = small_config();
  config.vocab_size = 12;
  const ModelRank wider(config, 1, 0);
  EXPECT_THAT(error_of([&] { load_checkpoint(path_, wider.store, nullptr); }),
              AllOf(HasSubstr(kShard), HasSubstr("model.embed_tokens.weight"), HasSubstr("shape [11,8]"),
                    HasSubstr("expected [12,8]")));
}

TEST_F(LoadTest, AnotherElementType) {
  make_foreign([](std::vector<TensorSource>& sources) { find(sources, kSomeExpert).dtype = DType::i32; });
  EXPECT_THAT(refusal_of_values(), AllOf(HasSubstr("model.safetensors"), HasSubstr(kSomeExpert), HasSubstr("I32"),
                                         HasSubstr("expected F32, F16, BF16 or F8_E4M3")));
}

TEST_F(LoadTest, AForeignCheckpointServesInferenceOnly) {
  make_foreign([](std::vector<TensorSource>& /*sources*/) {});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("cadre.json"), HasSubstr("training cannot go on")));
  const Manifest manifest = load_checkpoint(path_, rank_.store, nullptr);
  EXPECT_EQ(manifest, Manifest{});
  for (const NamedTensor& tensor : name_values(rank_.store, any_parameter))
    EXPECT_TRUE(is_filled(tensor)) << tensor.name;
  for (const NamedTensor& tensor : name_moments(rank_.optimizer, any_parameter))
    EXPECT_TRUE(is_poison(tensor)) << tensor.name;
}

TEST_F(LoadTest, Bf16IsConverted) {
  std::vector<bf16> halves;
  for (int64_t i = 0; i < 6 * 8; ++i) halves.push_back(to_bf16(element(kSomeExpert, i)));
  make_foreign([&](std::vector<TensorSource>& sources) {
    find(sources, kSomeExpert).dtype = DType::bf16;
    find(sources, kSomeExpert).bytes = std::as_bytes(std::span(halves));
  });
  load_checkpoint(path_, rank_.store, nullptr);
  size_t num_checked = 0;
  for (const auto& [name, memory] : name_values(rank_.store, any_parameter)) {
    if (name != kSomeExpert) continue;
    for (size_t i = 0; i < halves.size(); ++i, ++num_checked) EXPECT_EQ(memory.data<float>()[i], to_float(halves[i]));
  }
  EXPECT_EQ(num_checked, halves.size());
}

}  // namespace
}  // namespace cadre::model_checkpoint_load_test
