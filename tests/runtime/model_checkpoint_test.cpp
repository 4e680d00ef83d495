// SPDX-License-Identifier: Apache-2.0
// What any number of ranks saved, any other number loads, bit by bit; a rank that cannot write stops the save on all
// ranks, and what was saved before stands.
#include "runtime/checkpoint/model_checkpoint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <optional>

#include "comm/job/wait.hpp"
#include "comm/transport/local.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "tests/support/checkpoints.hpp"
#include "tests/support/file_size_limit.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::model_checkpoint_test {
namespace {

namespace fs = std::filesystem;
using namespace test;
using testing::AllOf;
using testing::HasSubstr;

// Runs `body` on ranks that see one fresh directory, which goes away when all of them are done.
void on_ranks_with_directory(const std::function<void(Communicator&, const fs::path&)>& body,
                             const std::vector<int>& rank_counts = test::kRankCounts) {
  const auto with_directory = [&](Communicator& world) {
    std::optional<TemporaryDirectory> directory;
    std::vector<char> name(256);
    if (world.rank() == 0) directory.emplace().path().string().copy(name.data(), name.size() - 1);
    name = wait(world.broadcast(std::move(name), 0), kDeadlineSeconds);
    body(world, fs::path(name.data()));
    Request all_done = world.barrier();
    wait(all_done, kDeadlineSeconds);
  };
  on_ranks(with_directory, rank_counts);
}

// Expects that each rank of a job of `num_ranks` finds all that it holds.
void expect_loads(const fs::path& path, const ModelConfig& config, int num_ranks) {
  for (int place = 0; place < num_ranks; ++place) {
    ModelRank rank(config, num_ranks, place);
    poison(rank);
    const uint64_t version = rank.store.parameters().front()->version;
    load_checkpoint(path, rank.store, &rank.optimizer);
    for (const NamedTensor& tensor : rank.tensors()) EXPECT_TRUE(is_filled(tensor)) << tensor.name;
    for (const Parameter* parameter : rank.store.parameters()) EXPECT_GT(parameter->version, version);
  }
}

size_t count_shards(const fs::path& folder) {
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) count += entry.path().extension() == ".safetensors" ? 1 : 0;
  return count;
}

TEST(ModelCheckpoint, LoadsOnAnyNumberOfRanks) {
  on_ranks_with_directory([](Communicator& world, const fs::path& root) {
    const ModelConfig config = small_config();
    const fs::path path = save_filled(world, root, 5, config);
    EXPECT_EQ(path, root / "step_00000005");
    for (const int num_ranks : {1, 2, 3, 4, 7}) expect_loads(path, config, num_ranks);
    EXPECT_EQ(count_shards(path), static_cast<size_t>(world.size()));
    EXPECT_EQ(count_shards(path / "optimizer"), static_cast<size_t>(world.size()));
  });
}

TEST(ModelCheckpoint, OnlyRanksWithSomethingToWriteWrite) {
  // Two experts leave ranks 2 and 3 without any; of two groups of two ranks the second holds copies.
  on_ranks_with_directory(
      [](Communicator& world, const fs::path& root) {
        const ModelConfig two_experts = small_config(2);
        const fs::path few = save_filled(world, root / "few", 1, two_experts);
        EXPECT_EQ(count_shards(few), 2U);
        expect_loads(few, two_experts, 3);

        const ModelConfig config = small_config();
        const ModelRank rank(config, 2, world.rank() % 2);
        fill(rank);
        const fs::path grouped = save(world, root / "groups", 1, rank, world.rank() < 2);
        EXPECT_TRUE(fs::exists(grouped / "model-00002-of-00002.safetensors"));
        EXPECT_EQ(count_shards(grouped), 2U);
        expect_loads(grouped, config, 4);
      },
      {4});
}

TEST(ModelCheckpoint, IsAHuggingFaceDirectory) {
  const TemporaryDirectory root;
  const ModelConfig config = small_config();
  fs::path path;
  run_local_ranks(3, [&](std::unique_ptr<Transport> transport) {
    const Communicator world(std::move(transport), "world");
    const fs::path mine = save_filled(world, root.path(), 5, config);
    if (world.rank() == 0) path = mine;
  });
  const Manifest manifest = verify_checkpoint(path, Verify::full);
  EXPECT_EQ(manifest.step, 5);
  EXPECT_EQ(manifest.seed, 7U);
  EXPECT_EQ(manifest.tokens_seen, 5000);
  EXPECT_EQ(manifest.files, digest_files(path));
  EXPECT_EQ(manifest.files.size(), 3U + 1 + 3 + 1 + 2);
  EXPECT_EQ(read_file(path / "run.toml"), kRunToml);
  EXPECT_EQ(read_model_config(path), config);
  EXPECT_EQ(read_model_config(path / "config.json"), config);
  EXPECT_EQ(latest_checkpoint(root.path()), (CheckpointPath{5, path}));

  // One rank holds all names.
  const ModelRank whole(config, 1, 0);
  ShardedReader reader(path);
  EXPECT_EQ(reader.weight_map().size(), name_values(whole.store, any_parameter).size());
  EXPECT_EQ(reader.at(kSomeExpert).entry.shape, (std::vector<int64_t>{6, 8}));
  EXPECT_EQ(reader.weight_map().find(kSomeExpert)->second, "model-00003-of-00003.safetensors");
  EXPECT_EQ(reader.at("model.layers.1.mlp.gate.e_score_correction_bias").entry.shape, std::vector<int64_t>{10});
  ShardedReader moments(path / "optimizer");
  EXPECT_EQ(moments.weight_map().size(), name_moments(whole.optimizer, any_parameter).size());
  EXPECT_TRUE(moments.find(std::string(kSomeExpert) + ".exp_avg_sq").has_value());
  const std::vector<NamedTensor> named = name_moments(whole.optimizer, any_parameter);
  EXPECT_THAT(named[0].name, testing::EndsWith(".exp_avg"));
  EXPECT_EQ(named[0].memory.raw(), whole.optimizer.moments().front().first.raw());
}

TEST(ModelCheckpoint, KeepsTheNewest) {
  const TemporaryDirectory root;
  run_local_ranks(2, [&](std::unique_ptr<Transport> transport) {
    const Communicator world(std::move(transport), "world");
    for (const int64_t step : {1, 2, 3}) save_filled(world, root.path(), step, small_config());
  });
  const std::vector<CheckpointPath> kept = list_checkpoints(root.path());
  ASSERT_EQ(kept.size(), 2U);
  EXPECT_EQ(kept[0].step, 3);
  EXPECT_EQ(kept[1].step, 2);
}

// --- ranks that cannot write ----------------------------------------------------------------------------------------

// Expects that what `root` held before is there and whole, and nothing newer.
void expect_stands(const fs::path& root, int64_t step) {
  const auto latest = latest_checkpoint(root);
  ASSERT_TRUE(latest.has_value());
  EXPECT_EQ(latest->step, step);
  EXPECT_EQ(list_checkpoints(root).size(), 1U);
  verify_checkpoint(latest->path, Verify::full);
}

TEST(FailedSave, OneRankStopsAll) {
  on_ranks_with_directory(
      [](Communicator& world, const fs::path& root) {
        const ModelConfig config = small_config();
        save_filled(world, root, 1, config);

        // A checkpoint holds f32: the last rank cannot write its parameters.
        const int bad = world.size() - 1;
        const ModelRank rank(config, world.size(), world.rank(), world.rank() == bad ? DType::f64 : DType::f32);
        const std::string text = error_of([&] { save(world, root, 2, rank, true); });
        EXPECT_THAT(text, HasSubstr("f64"));
        if (world.rank() != bad) {
          EXPECT_THAT(text, HasSubstr(fmt::format("failed on rank {}:", bad)));
        }
        expect_stands(root, 1);

        // The next save is not disturbed by what the failed one left.
        const fs::path path = save_filled(world, root, 3, config);
        expect_loads(path, config, 2);
      },
      {2, 3, 4});
}

TEST(FailedSave, AnUnwritableRoot) {
  on_ranks_with_directory([](Communicator& world, const fs::path& root) {
    const fs::path file = root / "file";
    if (world.rank() == 0) write_file(file, "in the way");
    EXPECT_THAT(error_of([&] { save_filled(world, file, 1, small_config()); }), HasSubstr("cannot create"));
  });
}

TEST(FailedSave, AFullDisk) {
  const TemporaryDirectory root;
  const ModelConfig config = small_config();
  const fs::path first = save_alone(root.path(), config);
  constexpr rlim_t kTooFew = 1024;
  ASSERT_GT(fs::file_size(first / "model-00001-of-00001.safetensors"), 8 * kTooFew);

  const FileSizeLimit full(kTooFew);
  run_local_ranks(3, [&](std::unique_ptr<Transport> transport) {
    const Communicator world(std::move(transport), "world");
    const std::string text = error_of([&] { save_filled(world, root.path(), 6, config); });
    EXPECT_THAT(text, AllOf(HasSubstr("cannot write"), HasSubstr("File too large")));
  });
  expect_stands(root.path(), 5);
}

// Neither is a checkpoint complete that lacks experts, nor one that holds them twice.
TEST(FailedSave, TheWrongRanksWriteExperts) {
  const TemporaryDirectory root;
  const ModelConfig config = small_config();
  const auto save_as = [&](int num_owners, bool second_writes) {
    run_local_ranks(2, [&](std::unique_ptr<Transport> transport) {
      const Communicator world(std::move(transport), "world");
      const ModelRank rank(config, num_owners, world.rank() % num_owners);
      fill(rank);
      const std::string text = error_of([&] { save(world, root.path(), 1, rank, world.rank() == 0 || second_writes); });
      EXPECT_THAT(text, HasSubstr(num_owners == 2 ? "the whole model has" : "was written to"));
    });
  };
  save_as(2, false);
  save_as(1, true);
  EXPECT_TRUE(list_checkpoints(root.path()).empty());
}

}  // namespace
}  // namespace cadre::model_checkpoint_test
