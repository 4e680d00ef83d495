// SPDX-License-Identifier: Apache-2.0
// Saves in the background: to the bit what a save at once writes, one after the other, over before the run is; and what
// becomes of a run whose checkpoints cannot be written.
#include "runtime/train/saver.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/partner_copies.hpp"
#include "runtime/train/memory_plan.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::saver_test {
namespace {

namespace fs = std::filesystem;
using test::RunFolder;
using testing::AllOf;
using testing::HasSubstr;

RunConfig run_in(const RunFolder& folder, const char* name, bool async) {
  RunConfig config = test::small_run(folder.path());
  config.out = (folder.path() / name).string();
  config.exchange.strategy = "flat";
  config.checkpoint.async = async;
  return config;
}

// What must not depend on how a checkpoint was saved: all but run.toml, which says how, and cadre.json, which has its
// checksum.
std::map<std::string, std::string> contents(const fs::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(checkpoint)) {
    const std::string name = entry.path().lexically_relative(checkpoint).string();
    if (entry.is_regular_file() && name != "run.toml" && name != "cadre.json") files[name] = test::read_file(entry);
  }
  return files;
}

// Two steps, a save, and two steps that change all that was saved.
fs::path save_and_go_on(const Communicator& world, const RunConfig& config) {
  Trainer trainer(world.duplicate("run"), config);
  trainer.step();
  trainer.step();
  trainer.save();
  trainer.step();
  trainer.step();
  trainer.require_saved();
  Request all_done = world.barrier();
  wait(all_done);
  return checkpoint_root(config) / "step_00000002";
}

TEST(Saver, in_the_background_writes_the_bits_of_the_step_it_was_asked_at) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const fs::path at_once = save_and_go_on(world, run_in(folder, "at_once", false));
        const fs::path behind = save_and_go_on(world, run_in(folder, "behind", true));
        if (world.rank() != 0) return;
        verify_checkpoint(behind, Verify::full);
        // Configuration, manifest, run file, tokenizer (2), ends of texts; weights and moments of each rank.
        ASSERT_EQ(contents(at_once).size(), 6U + 2U * static_cast<size_t>(world.size()));
        EXPECT_EQ(contents(at_once), contents(behind));
      },
      {1, 2, 3});
}

// What rank 0 prints while `action` runs on ranks of threads.
std::string printed_on_threads(int num_ranks, const std::function<void(const Communicator&)>& action) {
  testing::internal::CaptureStdout();
  run_local_ranks(num_ranks,
                  [&](std::unique_ptr<Transport> transport) { action(Communicator(std::move(transport), "world")); });
  return testing::internal::GetCapturedStdout();
}

class SaverOnThreads : public testing::Test {
 protected:
  void SetUp() override {
    if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
    test::write_file(folder_ / "text", test::some_text());
    config_ = test::small_run(folder_.path());
    config_.train.steps = 5;
    config_.exchange.strategy = "flat";
    config_.log.every = 1;
    config_.log.wide = true;  // with the time of saves
  }
  // The whole run, as `cadre train` does it.
  std::string run(int num_ranks) {
    return printed_on_threads(num_ranks,
                              [&](const Communicator& world) { Trainer(world.duplicate("run"), config_).run(); });
  }

  test::TemporaryDirectory folder_;
  RunConfig config_;
};

TEST_F(SaverOnThreads, a_second_save_waits_and_says_so) {
  config_.checkpoint.async = true;
  const std::string printed = printed_on_threads(2, [&](const Communicator& world) {
    Trainer trainer(world.duplicate("run"), config_);
    trainer.step();
    trainer.save();
    trainer.step();
    trainer.save();
    trainer.require_saved();
  });
  EXPECT_THAT(printed, AllOf(HasSubstr("the checkpoint of step 2 waits for that of step 1"),
                             HasSubstr("saved " + (checkpoint_root(config_) / "step_00000001").string()),
                             HasSubstr("saved " + (checkpoint_root(config_) / "step_00000002").string())));
  const auto checkpoints = list_checkpoints(checkpoint_root(config_));
  ASSERT_EQ(checkpoints.size(), 2U);
  for (const CheckpointPath& checkpoint : checkpoints) verify_checkpoint(checkpoint.path, Verify::full);
}

TEST_F(SaverOnThreads, a_run_ends_when_its_last_save_is_over) {
  for (const bool async : {false, true}) {
    config_.checkpoint.async = async;
    config_.checkpoint.every = 2;
    const std::string printed = run(2);
    EXPECT_EQ(latest_checkpoint(checkpoint_root(config_))->step, 5);
    EXPECT_THAT(printed, HasSubstr(" | stall "));
    EXPECT_EQ(printed.find("ms in the background") != std::string::npos, async);
    EXPECT_THAT(printed, HasSubstr(" | save ")) << "in the line of the step after";
    EXPECT_THAT(test::read_file(fs::path(config_.out) / "metrics.jsonl"), HasSubstr("\"save_ms\":"));
  }
}

// Runs to its end without a checkpoint, and does not claim to be finished.
TEST_F(SaverOnThreads, what_cannot_be_saved_does_not_stop_a_run) {
  for (const bool async : {false, true}) {
    SCOPED_TRACE(async);
    config_.checkpoint.async = async;
    config_.checkpoint.every = 2;
    fs::create_directories(config_.out);
    fs::remove_all(checkpoint_root(config_));
    test::write_file(checkpoint_root(config_), "in the way");
    const std::string printed = printed_on_threads(3, [&](const Communicator& world) {
      EXPECT_THAT(test::error_of([&] { Trainer(world.duplicate("run"), config_).run(); }),
                  AllOf(HasSubstr("the last checkpoint, of step 5, could not be saved: rank 0: cannot"),
                        HasSubstr("the same command")));
    });
    for (const int step : {2, 4, 5}) {
      EXPECT_THAT(printed, HasSubstr(fmt::format("warning: the checkpoint of step {} was not saved: rank 0", step)));
    }
    EXPECT_THAT(printed, AllOf(HasSubstr("step 5/5"), HasSubstr("there is none yet, the run goes on")));
    EXPECT_FALSE(fs::exists(fs::path(config_.out) / "FINISHED"));
  }
}

TEST_F(SaverOnThreads, the_copy_is_in_the_memory_plan) {
  const auto copy_of = [&](int rank) {
    for (const MemoryLine& line : plan_memory(config_, Topology::uniform(1, 2), rank).lines) {
      if (line.what == "checkpoint copy") return line.bytes;
    }
    return size_t{0};
  };
  EXPECT_EQ(copy_of(0), 0U) << "only where there is a copy";
  config_.checkpoint.async = true;
  run(2);
  const fs::path saved = checkpoint_root(config_) / "step_00000005";
  for (const int rank : {0, 1}) {
    const std::string file = fmt::format("model-{:05}-of-00002.safetensors", rank + 1);
    const size_t bytes = fs::file_size(saved / file) + fs::file_size(saved / "optimizer" / file);
    EXPECT_NEAR(static_cast<double>(copy_of(rank)), static_cast<double>(bytes), 0.1 * static_cast<double>(bytes))
        << "headers are the rest";
  }
}

// Two states of all that a rank holds and of what its partner alone has, and what is sent: experts with two moments, and the
// moments that are shared out.
TEST_F(SaverOnThreads, partner_copies_are_in_the_memory_plan) {
  const auto line_of = [&](int rank) {
    for (const MemoryLine& line : plan_memory(config_, Topology::uniform(1, 2), rank).lines) {
      if (line.what == "partner copies") return line.bytes;
    }
    return size_t{0};
  };
  config_.checkpoint.partner_copies = 1;
  EXPECT_EQ(line_of(0), 0U) << "without recover = survivors none are made";
  config_.recover = "survivors";
  config_.checkpoint.partner_every = 1;
  std::array<size_t, 2> kept{};
  std::array<size_t, 2> sent{};
  printed_on_threads(2, [&](const Communicator& world) {
    PartnerCopies copies;
    Trainer trainer(world.duplicate("run"), config_, &copies);
    trainer.run();
    kept.at(static_cast<size_t>(world.rank())) = copies.bytes();
    for (const Parameter* parameter : trainer.worker().store().parameters()) {
      const bool is_expert = parameter->placement == Placement::expert;
      const size_t copies_of_it = is_expert ? 3 : trainer.worker().shards().keeps_alone(*parameter) ? 2 : 0;
      sent.at(static_cast<size_t>(world.rank())) += copies_of_it * parameter->value.bytes();
    }
  });
  for (const size_t rank : {0U, 1U}) {
    EXPECT_GT(sent[rank], 0U);
    EXPECT_EQ(line_of(static_cast<int>(rank)), kept[rank] + sent[rank]);
  }
}

}  // namespace
}  // namespace cadre::saver_test
