// SPDX-License-Identifier: Apache-2.0
// A run goes on from the newest checkpoint that is whole, to the bit; which one that is, all ranks find alike, also when
// only one of them reads the damaged file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::resume_test {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::RunFolder;
using test::write_file;
using testing::AllOf;
using testing::HasSubstr;

void flip_a_bit(const fs::path& file) {
  std::string content = read_file(file);
  content[content.size() * 2 / 3] ^= 16;
  write_file(file, content);
}

void cut(const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }

class SavedRun {
 public:
  SavedRun(Communicator& world, const RunFolder& folder) : world_(world), config_(test::small_run(folder.path())) {
    config_.exchange.strategy = "flat";
    config_.checkpoint.resume = "auto";
    config_.log.every = 1000;
  }

  // Six steps, with checkpoints after 2 and 4 of them.
  void train() {
    Trainer trainer(world_.duplicate("first"), config_);
    for (int step = 1; step <= 6; ++step) {
      losses_.push_back(trainer.step().global.loss);
      if (step == 2 || step == 4) trainer.save();
    }
  }
  // Rank 0 does it, on checkpoints as they were saved; the others wait.
  void damage(const std::function<void(const fs::path&)>& action) {
    if (world_.rank() == 0) {
      const fs::path saved = root().string() + ".saved";
      if (!fs::exists(saved)) fs::rename(root(), saved);
      fs::remove_all(root());
      fs::copy(saved, root(), fs::copy_options::recursive | fs::copy_options::copy_symlinks);
      action(root());
    }
    Request done = world_.barrier();
    wait(done);
  }
  void expect_goes_on_after(int64_t step) {
    Trainer trainer(world_.duplicate("again"), config_);
    ASSERT_EQ(trainer.steps_done(), step);
    for (auto i = static_cast<size_t>(step); i < losses_.size(); ++i) {
      EXPECT_EQ(trainer.step().global.loss, losses_[i]) << "step " << i + 1;
    }
  }
  void expect_trains_on_after(int64_t step) {
    Trainer trainer(world_.duplicate("again"), config_);
    ASSERT_EQ(trainer.steps_done(), step);
    EXPECT_EQ(trainer.optimizer().updates(), (UpdateCounts{step, step, step}));
    EXPECT_TRUE(std::isfinite(trainer.step().global.loss));
    EXPECT_EQ(trainer.optimizer().updates(), (UpdateCounts{step + 1, step + 1, step + 1}));
  }
  std::string refusal() {
    return test::error_of([&] { Trainer(world_.duplicate("again"), config_); });
  }

  RunConfig& config() { return config_; }
  fs::path root() const { return fs::path(config_.out) / "checkpoints"; }
  // Values that only the last rank reads, where there are several.
  std::string last_shard() const { return fmt::format("model-{0:05}-of-{0:05}.safetensors", world_.size()); }

 private:
  Communicator& world_;
  RunConfig config_;
  std::vector<double> losses_;
};

// Runs `body` on a run that has its checkpoints.
void on_runs(const std::function<void(SavedRun&)>& body) {
  test::on_ranks(
      [&](Communicator& world) {
        const RunFolder folder(world);
        SavedRun run(world, folder);
        run.train();
        body(run);
      },
      {1, 2, 3});
}

TEST(Resume, goes_on_from_the_newest) {
  on_runs([](SavedRun& run) { run.expect_goes_on_after(4); });
}

TEST(Resume, falls_back_over_whatever_is_damaged) {
  using Damage = std::function<void(SavedRun&, const fs::path& newest)>;
  const std::vector<std::pair<const char*, Damage>> damages = {
      {"a bit of weights", [](SavedRun& run, const fs::path& newest) { flip_a_bit(newest / run.last_shard()); }},
      {"a bit of moments",
       [](SavedRun& run, const fs::path& newest) { flip_a_bit(newest / "optimizer" / run.last_shard()); }},
      {"a bit of the manifest", [](SavedRun&, const fs::path& newest) { flip_a_bit(newest / "cadre.json"); }},
      {"a bit of the index",
       [](SavedRun&, const fs::path& newest) { flip_a_bit(newest / "model.safetensors.index.json"); }},
      {"a file too short", [](SavedRun& run, const fs::path& newest) { cut(newest / run.last_shard()); }},
      {"an empty file", [](SavedRun&, const fs::path& newest) { fs::resize_file(newest / "config.json", 0); }},
      {"no manifest", [](SavedRun&, const fs::path& newest) { fs::remove(newest / "cadre.json"); }},
      {"no file of moments",
       [](SavedRun& run, const fs::path& newest) { fs::remove(newest / "optimizer" / run.last_shard()); }},
      {"weights of another step",
       [](SavedRun& run, const fs::path& newest) {
         const fs::path older = newest.parent_path() / "step_00000002";
         fs::copy_file(older / run.last_shard(), newest / run.last_shard(), fs::copy_options::overwrite_existing);
       }},
      {"nothing at all",
       [](SavedRun&, const fs::path& newest) { fs::remove_all(newest), fs::create_directory(newest); }},
  };
  on_runs([&](SavedRun& run) {
    for (const auto& [what, damage] : damages) {
      SCOPED_TRACE(what);
      run.damage([&, &damage = damage](const fs::path& root) { damage(run, root / "step_00000004"); });
      run.expect_goes_on_after(2);
    }
  });
}

TEST(Resume, needs_no_link) {
  on_runs([](SavedRun& run) {
    run.damage([](const fs::path& root) { fs::remove(root / "latest"); });
    run.expect_goes_on_after(4);
  });
}

TEST(Resume, takes_the_folder_of_a_run) {
  on_runs([](SavedRun& run) {
    run.damage([&](const fs::path& root) { flip_a_bit(root / "step_00000004" / run.last_shard()); });
    run.config().checkpoint.resume = run.config().out;
    run.expect_goes_on_after(2);
    run.config().checkpoint.resume = run.root().string();
    run.expect_goes_on_after(2);
  });
}

TEST(Resume, says_so_when_all_are_damaged) {
  on_runs([](SavedRun& run) {
    run.damage([&](const fs::path& root) {
      flip_a_bit(root / "step_00000004" / run.last_shard());
      cut(root / "step_00000002" / run.last_shard());
    });
    EXPECT_THAT(run.refusal(), AllOf(HasSubstr("none of the checkpoints can be used"),
                                     HasSubstr("step_00000002/" + run.last_shard()), HasSubstr("resume=never")));
  });
}

TEST(Resume, takes_no_other_than_the_one_that_is_named) {
  on_runs([](SavedRun& run) {
    run.damage([&](const fs::path& root) { flip_a_bit(root / "step_00000004" / run.last_shard()); });
    run.config().checkpoint.resume = (run.root() / "step_00000004").string();
    EXPECT_THAT(run.refusal(), HasSubstr("step_00000004/" + run.last_shard()));
  });
}

// Of another model: no damage, and nothing older would fit either.
TEST(Resume, refuses_weights_of_other_names_and_shapes) {
  on_runs([](SavedRun& run) {
    const RunConfig before = run.config();
    const auto refusal_with = [&](const std::function<void(ModelConfig&)>& change) {
      run.config() = before;
      change(run.config().model);
      return run.refusal();
    };
    EXPECT_THAT(refusal_with([](ModelConfig& model) { model.intermediate_size += 8; }),
                AllOf(HasSubstr("mlp.gate_proj.weight\" has shape ["), HasSubstr("model.intermediate_size = ")));
    EXPECT_THAT(refusal_with([](ModelConfig& model) { model.n_shared_experts = 0; }),
                AllOf(HasSubstr("tensors that this configuration has not"), HasSubstr("shared_experts"),
                      HasSubstr("model.n_shared_experts = 0, was 1")));
    EXPECT_THAT(refusal_with([](ModelConfig& model) { ++model.num_hidden_layers; }),
                AllOf(HasSubstr("holds no tensor \"model.layers."), HasSubstr("model.num_hidden_layers = ")));
  });
}

// Everything but shapes may change, and the optimiser goes on.
TEST(Resume, goes_on_with_another_configuration) {
  on_runs([](SavedRun& run) {
    run.config().seed += 1;
    run.config().train.batch += 2;
    run.config().train.micro_batches = 2;
    run.config().data.sequence_length /= 2;
    run.config().model.aux_loss_alpha = 0.5;
    run.config().train.stages = "gate:1,all";
    run.expect_trains_on_after(4);
  });
}

}  // namespace
}  // namespace cadre::resume_test
