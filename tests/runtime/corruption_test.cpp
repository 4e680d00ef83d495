// SPDX-License-Identifier: Apache-2.0
// Thousands of damaged files: of a checkpoint only what is whole is ever taken, to the bit, and every file that cannot be
// used is a clear error. CADRE_CORRUPTIONS says how many (`tests/campaign corrupt`), CADRE_SEED repeats a run.
#include "tests/support/corruption.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/observe/run_log.hpp"
#include "tests/support/checkpoints.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::corruption_test {
namespace {

LogConfig with_table() {
  LogConfig config;
  config.every = 1000;
  config.metrics = "csv";
  return config;
}

namespace fs = std::filesystem;
using namespace test;

uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

const uint64_t kSeed = number_from("CADRE_SEED", 1);

// Of all tests together.
uint64_t share_of(double share) {
  return static_cast<uint64_t>(share * static_cast<double>(number_from("CADRE_CORRUPTIONS", 600)));
}

// What became of them, for people.
struct Tally {
  std::map<std::string, int> counts;
  ~Tally() {
    for (const auto& [what, count] : counts) std::printf("  %6d  %s\n", count, what.c_str());
  }
};

// An error that a user can read: one line that names a file of the folder.
void expect_clear(const Error& error, const fs::path& folder) {
  const std::string text = error.what();
  EXPECT_NE(error.kind(), ErrorKind::internal) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  EXPECT_NE(text.find(folder.string()), std::string::npos) << text;
}

// Runs `read`: true when it went through. Whatever is thrown must be a clear Error.
template <class Read>
bool is_read(const fs::path& folder, Read&& read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    expect_clear(error, folder);
  } catch (const std::exception& error) {
    ADD_FAILURE() << "no Error: " << error.what();
  }
  return false;
}

// Two checkpoints of one rank each, whose every element tells its step.
class Checkpoints {
 public:
  Checkpoints() {
    for (const int64_t step : {1, 2}) {
      on_one_rank([&](const Communicator& world) {
        fill(step);
        save(world, root(), step, rank_, true);
      });
      values_[step] = values();
    }
  }

  // The step that a run would go on from. Throws as load_newest does.
  int64_t load() {
    poison(rank_);
    fs::path path;
    on_one_rank([&](const Communicator& world) {
      std::vector<fs::path> candidates;
      for (const CheckpointPath& checkpoint : list_checkpoints(root())) candidates.push_back(checkpoint.path);
      path = load_newest(
          world, kDeadlineSeconds, candidates,
          [&](const fs::path& candidate) { manifest_ = load_checkpoint(candidate, rank_.store, &rank_.optimizer); },
          [&](const std::string& line) { EXPECT_NE(line.find(root().string()), std::string::npos) << line; });
    });
    return manifest_.step;
  }
  bool holds(int64_t step) { return values() == values_[step]; }
  // The values alone, as `cadre eval` loads what another program may have written.
  void load_foreign(int64_t step) { load_checkpoint(path_of(step), rank_.store, nullptr); }

  fs::path root() const { return folder_ / "checkpoints"; }
  fs::path path_of(int64_t step) const { return root() / fmt::format("step_{:08}", step); }

 private:
  static void on_one_rank(const std::function<void(const Communicator&)>& body) { test::on_one_rank(body); }
  void fill(int64_t step) {
    test::fill(rank_);
    for (const NamedTensor& tensor : rank_.tensors()) tensor.memory.data<float>()[0] = static_cast<float>(step);
  }
  std::string values() const {
    std::string all;
    for (const NamedTensor& tensor : rank_.tensors()) {
      all.append(reinterpret_cast<const char*>(tensor.memory.raw()), tensor.memory.bytes());
    }
    return all;
  }

  TemporaryDirectory folder_;
  ModelRank rank_{small_config(), 1, 0};
  Manifest manifest_;
  std::map<int64_t, std::string> values_;
};

bool is_below(const fs::path& file, const fs::path& folder) { return file.string().starts_with(folder.string() + "/"); }

TEST(Corruption, of_checkpoints_is_found_and_an_older_one_is_taken) {
  Checkpoints checkpoints;
  ASSERT_EQ(checkpoints.load(), 2);
  ASSERT_TRUE(checkpoints.holds(2));
  CorruptibleFolder files(checkpoints.root(), kSeed);
  Tally tally;
  for (uint64_t i = 0; i < share_of(0.6); ++i) {
    std::string how;
    for (size_t left = 1 + files.below(3); left > 0; --left) how += files.corrupt() + "; ";
    SCOPED_TRACE(how);
    bool is_hit[3] = {false, false, false};
    for (const fs::path& file : files.touched()) {
      for (const int64_t step : {1, 2}) is_hit[step] |= is_below(file, checkpoints.path_of(step));
    }
    int64_t step = 0;
    const bool found = is_read(checkpoints.root(), [&] { step = checkpoints.load(); });
    EXPECT_TRUE(!found || checkpoints.holds(step)) << "step " << step;
    EXPECT_TRUE(is_hit[2] || step == 2) << "nothing was wrong with the newer one, taken was " << step;
    EXPECT_TRUE(is_hit[1] || found) << "the older one was whole";
    ++tally.counts[!found ? "checkpoints: both damaged, an error" : fmt::format("checkpoints: went on from {}", step)];
    files.restore();
    if (HasFailure()) return;
  }
}

TEST(Corruption, of_weights_without_a_manifest_is_read_or_refused) {
  Checkpoints checkpoints;
  fs::remove_all(checkpoints.path_of(1));
  fs::remove(checkpoints.path_of(2) / kManifestFile);
  const auto read = [&] { return is_read(checkpoints.root(), [&] { checkpoints.load_foreign(2); }); };
  ASSERT_TRUE(read());
  CorruptibleFolder files(checkpoints.path_of(2), kSeed + 1);
  Tally tally;
  for (uint64_t i = 0; i < share_of(0.1); ++i) {
    SCOPED_TRACE(files.corrupt());
    ++tally.counts[read() ? "foreign weights: read" : "foreign weights: an error"];
    files.restore();
    if (HasFailure()) return;
  }
}

TEST(Corruption, of_configurations_is_read_or_refused) {
  const TemporaryDirectory folder;
  RunConfig config = small_run(folder.path());
  config.log.every = 1;
  write_file(folder / "run.toml", to_toml(config));
  write_file(folder / "config.json", to_json(config.model).dump(2));
  const auto all_read = [&] {
    const bool toml = is_read(folder.path(), [&] { load_run_config((folder / "run.toml").string(), {}); });
    const bool json = is_read(folder.path(), [&] { read_model_config(folder / "config.json"); });
    return toml && json;
  };
  ASSERT_TRUE(all_read());
  CorruptibleFolder files(folder.path(), kSeed + 2);
  Tally tally;
  for (uint64_t i = 0; i < share_of(0.15); ++i) {
    SCOPED_TRACE(files.corrupt());
    ++tally.counts[all_read() ? "configurations: read" : "configurations: an error"];
    files.restore();
    if (HasFailure()) return;
  }
}

std::string token_bin() {
  const std::array<int32_t, 3> header = {20240520, 1, 3000};
  std::string file(1024 + 2 * 3000, '\0');
  std::memcpy(file.data(), header.data(), sizeof header);
  for (size_t i = 0; i < 3000; ++i) file[1024 + 2 * i] = static_cast<char>(i % 251);
  return file;
}

TEST(Corruption, of_data_is_read_or_refused) {
  const TemporaryDirectory folder;
  write_file(folder / "tokens.bin", token_bin());
  write_file(folder / "text", some_text().substr(0, 3000));
  const auto all_read = [&] {
    bool all = true;
    for (const char* name : {"tokens.bin", "text"}) {
      DataConfig config;
      config.path = (folder / name).string();
      config.sequence_length = 24;
      all &= is_read(folder.path(), [&] {
        const TokenSource train = open_dataset(config, ModelConfig()).train.front().tokens;
        std::vector<int32_t> ids(static_cast<size_t>(train.num_tokens()));
        train.read(0, ids);
        EXPECT_LT(std::ranges::max(ids), 256);
      });
    }
    return all;
  };
  ASSERT_TRUE(all_read());
  CorruptibleFolder files(folder.path(), kSeed + 3);
  Tally tally;
  for (uint64_t i = 0; i < share_of(0.1); ++i) {
    SCOPED_TRACE(files.corrupt());
    ++tally.counts[all_read() ? "data: read" : "data: an error"];
    files.restore();
    if (HasFailure()) return;
  }
}

TEST(Corruption, of_metrics_is_cut_off_or_refused) {
  const TemporaryDirectory folder;
  StepRecord record;
  record.moe_layers = {1};
  record.global.expert_counts = {{3, 1, 2, 2}};
  record.global.layer_dropped = {0};
  record.global.layer_device_slots = {{8}};
  record.global.device_slots = {8};
  record.global.device_bytes = {0};
  testing::internal::CaptureStdout();
  {
    RunLog log(folder.path(), 0, with_table());
    for (record.step = 1; record.step <= 20; ++record.step) log.step(record);
  }
  CorruptibleFolder files(folder.path(), kSeed + 4);
  std::map<std::string, int> counts;
  for (uint64_t i = 0; i < share_of(0.05) && !HasFailure(); ++i) {
    SCOPED_TRACE(files.corrupt());
    const bool goes_on = is_read(folder.path(), [&] {
      RunLog log(folder.path(), 10, with_table());
      record.step = 11;
      log.step(record);
    });
    ++counts[goes_on ? "metrics: gone on with" : "metrics: an error"];
    files.restore_all();  // both were cut back
  }
  testing::internal::GetCapturedStdout();
  const Tally tally{counts};
}

}  // namespace
}  // namespace cadre::corruption_test
