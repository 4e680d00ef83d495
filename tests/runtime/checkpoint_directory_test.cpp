// SPDX-License-Identifier: Apache-2.0
// A checkpoint appears whole or not at all, the old one stays until then, and damage is found and named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "tests/support/files.hpp"

namespace cadre::checkpoint_directory_test {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class CheckpointDirectoryTest : public testing::Test {
 protected:
  fs::path stage(int64_t step, const std::string& content) {
    const fs::path staged = stage_checkpoint(root_, step);
    fs::create_directory(staged / "optimizer");
    write_file(staged / "model.safetensors", content);
    write_file(staged / "optimizer" / "state", "state of " + content);
    Manifest manifest = training_state(step);
    manifest.files = digest_files(staged);
    write_manifest(staged, manifest);
    return staged;
  }
  fs::path save(int64_t step, const std::string& content = "weights") {
    stage(step, content);
    return commit_checkpoint(root_, step);
  }
  [[noreturn]] void save_until_killed(int64_t step) {
    try {
      for (;; ++step) {
        save(step, std::string(100'000, static_cast<char>('a' + step % 26)));
        prune_checkpoints(root_, {.newest = 2});
      }
    } catch (const std::exception&) {
      ::_exit(1);
    }
  }
  static Manifest training_state(int64_t step) {
    Manifest manifest;
    manifest.cadre_version = "0.1.0";
    manifest.step = step;
    manifest.seed = 0xfedcba9876543210U;  // beyond what a signed number or a double holds
    manifest.tokens_seen = step * 4096;
    manifest.world_size = 6;
    manifest.config_hash = "0123";
    return manifest;
  }
  std::vector<int64_t> steps() {
    std::vector<int64_t> found;
    for (const CheckpointPath& checkpoint : list_checkpoints(root_)) found.push_back(checkpoint.step);
    return found;
  }
  std::vector<std::string> names_in_root() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(root_)) names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
  }

  TemporaryDirectory directory_;
  fs::path root_ = directory_ / "run/checkpoints";
};

TEST_F(CheckpointDirectoryTest, CommitsUnderTheFinalName) {
  EXPECT_THAT(steps(), ElementsAre());
  const fs::path staged = stage(100, "weights");
  EXPECT_EQ(staged, root_ / "step_00000100.tmp");
  EXPECT_THAT(steps(), ElementsAre());
  EXPECT_FALSE(latest_checkpoint(root_).has_value());
  EXPECT_EQ(commit_checkpoint(root_, 100), root_ / "step_00000100");
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "step_00000100"));
  EXPECT_EQ(fs::read_symlink(root_ / "latest"), "step_00000100");
  EXPECT_EQ(latest_checkpoint(root_), (CheckpointPath{100, root_ / "step_00000100"}));
  EXPECT_EQ(read_file(root_ / "latest/optimizer/state"), "state of weights");
}

TEST_F(CheckpointDirectoryTest, ListsNewestFirst) {
  for (const int64_t step : {0, 9, 10, 123456789}) save(step);
  EXPECT_THAT(steps(), ElementsAre(123456789, 10, 9, 0));
  fs::remove(root_ / "latest");
  EXPECT_THAT(steps(), ElementsAre(123456789, 10, 9, 0));
}

TEST_F(CheckpointDirectoryTest, ListsOnlyCheckpoints) {
  save(5);
  for (const char* name : {"step_", "step_5", "step_-0000005", "step_00000006.tmp", "step_0000000x", "step_000000007",
                           "Step_00000008", "notes"}) {
    fs::create_directory(root_ / name);
  }
  write_file(root_ / "step_00000009", "a file");
  EXPECT_THAT(steps(), ElementsAre(5));
}

TEST_F(CheckpointDirectoryTest, ARunThatWentBackComesBeforeWhatItLeft) {
  for (const int64_t step : {10, 20, 30, 15}) save(step);
  EXPECT_EQ(latest_checkpoint(root_)->step, 15);
  EXPECT_THAT(steps(), ElementsAre(15, 10, 30, 20));
  prune_checkpoints(root_, {.newest = 2});
  EXPECT_THAT(steps(), ElementsAre(15, 10));
}

TEST_F(CheckpointDirectoryTest, PruneKeepsTheNewest) {
  for (const int64_t step : {1, 2, 3, 4}) save(step);
  prune_checkpoints(root_, {.newest = 7});
  EXPECT_THAT(steps(), ElementsAre(4, 3, 2, 1));
  prune_checkpoints(root_, {.newest = 2});
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "step_00000003", "step_00000004"));
  EXPECT_THAT(error_of([&] { prune_checkpoints(root_, {.newest = 0}); }), HasSubstr("at least 1"));
  EXPECT_THAT(steps(), ElementsAre(4, 3));
}

TEST_F(CheckpointDirectoryTest, PruneKeepsMilestones) {
  for (const int64_t step : {10, 15, 20, 25, 30, 35}) save(step);
  prune_checkpoints(root_, {.newest = 2, .every = 10});
  EXPECT_THAT(steps(), ElementsAre(35, 30, 20, 10));
  // A run that went back to step 20 and took another course from there keeps no milestone of the old one.
  save(25, "another course");
  prune_checkpoints(root_, {.newest = 1, .every = 10});
  EXPECT_THAT(steps(), ElementsAre(25, 20, 10));
}

TEST_F(CheckpointDirectoryTest, AnInterruptedSaveLeavesTheOldCheckpoint) {
  save(1, "old");
  stage(2, "half");
  EXPECT_THAT(steps(), ElementsAre(1));
  EXPECT_EQ(latest_checkpoint(root_)->step, 1);
  EXPECT_NO_THROW(verify_checkpoint(root_ / "latest", Verify::full));
  EXPECT_EQ(read_file(root_ / "latest/model.safetensors"), "old");
}

// A child saves and prunes without pause and is killed at some instant; whatever is listed then must be whole.
TEST_F(CheckpointDirectoryTest, AKillAtAnyInstantLeavesAWholeCheckpoint) {
  constexpr int kRounds = 12;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t first = latest_checkpoint(root_) ? latest_checkpoint(root_)->step : 0;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_until_killed(first + 1);
    // At least one save of this child must be committed, so that the kill falls between or into later ones.
    while (!latest_checkpoint(root_) || latest_checkpoint(root_)->step == first) {
      ASSERT_EQ(::waitpid(child, nullptr, WNOHANG), 0) << "the child gave up";
      ::usleep(1000);
    }
    ::usleep(static_cast<useconds_t>(9'000 * round));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    const auto checkpoints = list_checkpoints(root_);
    ASSERT_FALSE(checkpoints.empty());
    EXPECT_GT(checkpoints.front().step, first);
    for (const CheckpointPath& checkpoint : checkpoints) {
      EXPECT_EQ(verify_checkpoint(checkpoint.path, Verify::full).step, checkpoint.step);
    }
  }
  save(1'000'000);
  prune_checkpoints(root_, {.newest = 1});
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "step_01000000"));
}

TEST_F(CheckpointDirectoryTest, TheNextSaveRemovesWhatAKilledOneLeft) {
  save(1);
  stage(2, "half");
  write_file(root_ / "step_00000002.tmp/stale", "");
  fs::create_directory(root_ / "step_00000000.pruned.tmp");
  fs::create_directory_symlink("step_00000002", root_ / "latest.tmp");
  write_file(root_ / "notes.tmp", "not ours");
  stage(2, "whole");
  EXPECT_FALSE(fs::exists(root_ / "step_00000002.tmp/stale"));
  commit_checkpoint(root_, 2);
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "notes.tmp", "step_00000001", "step_00000002"));
  EXPECT_EQ(read_file(root_ / "latest/model.safetensors"), "whole");
}

TEST_F(CheckpointDirectoryTest, SavingAStepAgainReplacesIt) {
  save(7, "first");
  write_file(root_ / "step_00000007/only_in_first", "");
  stage(7, "second");
  EXPECT_EQ(read_file(root_ / "step_00000007/model.safetensors"), "first");
  commit_checkpoint(root_, 7);
  EXPECT_EQ(read_file(root_ / "step_00000007/model.safetensors"), "second");
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "step_00000007"));
  EXPECT_NO_THROW(verify_checkpoint(root_ / "latest", Verify::full));
  EXPECT_FALSE(fs::exists(root_ / "latest/only_in_first"));
}

TEST_F(CheckpointDirectoryTest, ADanglingLatestIsNone) {
  save(1);
  save(2);
  fs::remove_all(root_ / "step_00000002");
  EXPECT_FALSE(latest_checkpoint(root_).has_value());
  EXPECT_THAT(steps(), ElementsAre(1));
}

// As scp -r, cp -rL or an object store leave it.
TEST_F(CheckpointDirectoryTest, ACopiedRunHasAFolderWhereTheLinkWas) {
  for (const int64_t step : {1, 2}) save(step, fmt::format("weights {}", step));
  fs::remove(root_ / "latest");
  fs::copy(root_ / "step_00000001", root_ / "latest", fs::copy_options::recursive);
  EXPECT_EQ(latest_checkpoint(root_), (CheckpointPath{1, root_ / "step_00000001"}));
  EXPECT_THAT(steps(), ElementsAre(1, 2));
  save(3);
  EXPECT_EQ(fs::read_symlink(root_ / "latest"), "step_00000003");
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "step_00000001", "step_00000002", "step_00000003"));
}

TEST_F(CheckpointDirectoryTest, AFolderThatAloneHoldsItsStepIsKept) {
  save(1);
  const fs::path twin = save(2);
  fs::remove(root_ / "latest");
  fs::rename(twin, root_ / "latest");
  EXPECT_EQ(latest_checkpoint(root_), (CheckpointPath{2, root_ / "latest"}));
  EXPECT_THAT(steps(), ElementsAre(2, 1));
  EXPECT_EQ(checkpoints_at(directory_ / "run").front(), root_ / "latest");
  save(3);
  EXPECT_THAT(names_in_root(), ElementsAre("latest", "step_00000001", "step_00000002", "step_00000003"));
  EXPECT_EQ(read_file(root_ / "step_00000002/model.safetensors"), "weights");
}

TEST_F(CheckpointDirectoryTest, AnotherCheckpointOfTheStepIsSetAside) {
  save(2, "ours");
  fs::remove(root_ / "latest");
  fs::copy(root_ / "step_00000002", root_ / "latest", fs::copy_options::recursive);
  save(2, "others");
  EXPECT_EQ(read_file(root_ / "latest.copied.1/model.safetensors"), "ours");
  EXPECT_EQ(read_file(root_ / "latest/model.safetensors"), "others");
}

TEST_F(CheckpointDirectoryTest, AFileMayStandForTheLink) {
  for (const int64_t step : {1, 2}) save(step);
  fs::remove(root_ / "latest");
  write_file(root_ / "latest", "step_00000001");
  EXPECT_EQ(latest_checkpoint(root_)->step, 1);
  save(3);
  EXPECT_EQ(fs::read_symlink(root_ / "latest"), "step_00000003");
}

TEST_F(CheckpointDirectoryTest, APathOfAUserMeansCheckpoints) {
  for (const int64_t step : {1, 2}) save(step);
  const std::vector<fs::path> all = {root_ / "step_00000002", root_ / "step_00000001"};
  EXPECT_EQ(checkpoints_at(directory_ / "run"), all);
  EXPECT_EQ(checkpoints_at(root_), all);
  EXPECT_EQ(checkpoints_at(root_ / "step_00000001"), std::vector{root_ / "step_00000001"});
  EXPECT_EQ(checkpoints_at(root_ / "latest"), std::vector{root_ / "latest"});
  fs::remove(root_ / "latest");
  EXPECT_EQ(checkpoints_at(root_ / "latest"), all);
  EXPECT_TRUE(checkpoints_at(directory_.path()).empty());
  EXPECT_TRUE(checkpoints_at(directory_ / "nothing").empty());
}

// Another user of a shared folder may foresee the names of temporary files.
TEST_F(CheckpointDirectoryTest, ALinkAtATemporaryNameIsNotFollowed) {
  write_file(directory_ / "victim", "precious");
  fs::create_directory(directory_ / "elsewhere");
  fs::create_directories(root_);
  fs::create_symlink(directory_ / "victim", directory_ / "file.tmp");
  fs::create_directory_symlink(directory_ / "elsewhere", root_ / "step_00000001.tmp");
  write_text_file(directory_ / "file", "new");
  save(1);
  EXPECT_EQ(read_file(directory_ / "victim"), "precious");
  EXPECT_EQ(read_file(directory_ / "file"), "new");
  EXPECT_TRUE(fs::is_empty(directory_ / "elsewhere"));
  EXPECT_FALSE(fs::exists(directory_ / "file.tmp"));
}

TEST_F(CheckpointDirectoryTest, WritesOnlyRegularFiles) {
  EXPECT_THAT(error_of([] { write_text_file("/dev/null", "text"); }), HasSubstr("/dev/null: it is there and not a"));
}

TEST_F(CheckpointDirectoryTest, WhatCannotBeDoneIsNamed) {
  EXPECT_THAT(error_of([&] { commit_checkpoint(root_, 3); }), HasSubstr("step_00000003.tmp is gone"));
  EXPECT_THAT(error_of([&] { stage_checkpoint(root_, -1); }), HasSubstr("step -1"));
  write_file(directory_ / "file", "");
  EXPECT_THAT(error_of([&] { stage_checkpoint(directory_ / "file/root", 1); }),
              AllOf(HasSubstr("cannot create"), HasSubstr("file/root")));
}

TEST_F(CheckpointDirectoryTest, ManifestReadsBack) {
  const fs::path path = save(12);
  const Manifest manifest = verify_checkpoint(path, Verify::full);
  Manifest expected = training_state(12);
  expected.files = manifest.files;
  EXPECT_EQ(manifest, expected);
  ASSERT_EQ(manifest.files.size(), 2U);
  EXPECT_EQ(manifest.files.at("optimizer/state").bytes, 16U);
  // XXH64 of "weights" with seed 0, from an implementation of our own in another language.
  EXPECT_EQ(hex(manifest.files.at("model.safetensors").xxh64), "779c224020e59198");
}

class DamageTest : public CheckpointDirectoryTest {
 protected:
  void SetUp() override { path_ = save(3, "the weights"); }
  std::string damage(Verify how) {
    return error_of([&] { verify_checkpoint(path_, how); });
  }

  fs::path path_;
};

TEST_F(DamageTest, AFlippedByteIsFoundAndNamed) {
  write_file(path_ / "model.safetensors", "the veights");
  EXPECT_NO_THROW(verify_checkpoint(path_, Verify::lengths));
  EXPECT_THAT(damage(Verify::full), AllOf(HasSubstr("step_00000003/model.safetensors"), HasSubstr("checksum")));
}

TEST_F(DamageTest, ALengthIsFoundWithoutReading) {
  fs::resize_file(path_ / "optimizer/state", 3);
  for (const Verify how : {Verify::lengths, Verify::full}) {
    EXPECT_THAT(damage(how), AllOf(HasSubstr("optimizer/state"), HasSubstr("3 bytes, the manifest says 20")));
  }
}

TEST_F(DamageTest, AMissingFileIsNamed) {
  fs::remove(path_ / "optimizer/state");
  EXPECT_THAT(damage(Verify::lengths), AllOf(HasSubstr("optimizer/state"), HasSubstr("there is no such file")));
  fs::remove(path_ / "cadre.json");
  EXPECT_THAT(damage(Verify::lengths), AllOf(HasSubstr("cadre.json"), HasSubstr("there is no such file")));
}

TEST_F(DamageTest, AddedFilesDoNoHarm) {
  write_file(path_ / "README.md", "about these weights");
  EXPECT_NO_THROW(verify_checkpoint(path_, Verify::full));
}

TEST_F(DamageTest, AnyDamageOfTheManifestIsFound) {
  const std::string whole = read_file(path_ / "cadre.json");
  const Manifest expected = read_manifest(path_);
  size_t num_refused = 0;
  for (size_t place = 0; place < whole.size(); ++place) {
    std::string damaged = whole;
    damaged[place] ^= 1;
    write_file(path_ / "cadre.json", damaged);
    try {
      EXPECT_EQ(read_manifest(path_), expected) << "byte " << place;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("cadre.json"));
      ++num_refused;
    }
  }
  // The flip turns no white space into another, so that every byte counts.
  EXPECT_EQ(num_refused, whole.size());
}

TEST_F(DamageTest, AManifestOfAnotherKindIsRefused) {
  const auto error_with = [&](const char* key, const nlohmann::json& value) {
    Manifest manifest = training_state(1);
    manifest.files["model.safetensors"] = {};
    nlohmann::json content = manifest;
    content[key] = value;
    write_file(path_ / "cadre.json", content.dump());
    return error_of([&] { read_manifest(path_); });
  };
  EXPECT_THAT(error_with("format_version", 2), HasSubstr("format version 2; this Cadre reads 1 to 1"));
  EXPECT_THAT(error_with("format_version", "1"), HasSubstr("not a manifest"));
  EXPECT_THAT(error_with("step", 2), HasSubstr("not a manifest"));  // it has no checksum of its own
  EXPECT_THAT(error_with("xxh64", "0123456789abcdef"), HasSubstr("does not match its own checksum"));
  write_file(path_ / "cadre.json", "[1]");
  EXPECT_THAT(error_of([&] { read_manifest(path_); }), HasSubstr("not a manifest"));
}

TEST_F(DamageTest, FileNamesMustStayInside) {
  for (const char* name : {"../x", "a/../../x", "/etc/hostname", ""}) {
    Manifest manifest = training_state(1);
    manifest.files[name] = {};
    write_manifest(path_, manifest);
    EXPECT_THAT(error_of([&] { read_manifest(path_); }), HasSubstr("leads out of the checkpoint")) << name;
  }
}

}  // namespace
}  // namespace cadre::checkpoint_directory_test
