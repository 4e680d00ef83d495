// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/run_folder.hpp"

#include <fmt/format.h>

#include <optional>
#include <random>
#include <span>
#include <system_error>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "comm/group/agreement.hpp"
#include "comm/job/wait.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/config/config_changes.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/train/saver.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPhase = "claiming the folder of the run";

void note(const std::string& line) { say(line + '\n'); }

// run.toml of the folder, which the run that finished there wrote.
std::optional<RunConfig> finished_config(const fs::path& out) {
  try {
    return load_run_config((out / "run.toml").string(), {});
  } catch (const Error& error) {
    note(fmt::format("note: {} is finished, with a configuration that cannot be read: {}", out.string(), error.text()));
    return std::nullopt;
  }
}

void refuse_other(const RunConfig& finished, const RunConfig& config, int64_t step) {
  std::vector<std::string> texts;
  for (const KeyChange& change : changed_keys(finished, config)) {
    if (decides_result(change.key)) texts.push_back(change.text());
  }
  CADRE_CHECK(texts.empty(),
              fmt::format("out = {} holds a run of another configuration, finished after step {}: {}", config.out, step,
                          fmt::join(texts, "; ")),
              "choose another folder with out=PATH, or raise train.steps to go on from its last checkpoint");
}

// Rank 0: whether nothing is left to do. A folder without a checkpoint is not finished, whatever it says.
bool find_finished(const RunConfig& config) {
  const fs::path out = config.out;
  if (config.checkpoint.resume != "auto" || !fs::exists(out / "FINISHED")) return false;
  const auto checkpoints = list_checkpoints(checkpoint_root(config));
  if (checkpoints.empty() || config.train.steps > checkpoints.front().step) return false;
  const std::optional<RunConfig> finished = finished_config(out);
  if (!finished) return false;
  const int64_t step = checkpoints.front().step;
  refuse_other(*finished, config, step);
  if (config.train.steps < step) {
    note(fmt::format("note: train.steps = {}, and {} are done: nothing is left to train", config.train.steps, step));
  }
  note(fmt::format("the run in {} is finished, after step {}; its last checkpoint is {}", config.out, step,
                   checkpoints.front().path.string()));
  return true;
}

fs::path kept_base(const RunConfig& config) { return fs::absolute(config.out).lexically_normal() / "base"; }

bool is_kept(const RunConfig& config) {
  std::error_code none;
  return fs::is_directory(kept_base(config), none);
}

// The manifest names files of the optimiser, which are left out.
void link_files(const fs::path& from, const fs::path& to) {
  fs::create_directories(to);
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    if (!entry.is_regular_file() || entry.path().filename() == kManifestFile) continue;
    fs::create_hard_link(fs::canonical(entry.path()), to / entry.path().filename());
  }
  sync_path(to);
}

}  // namespace

std::string name_run(const Communicator& world) {
  std::random_device random;
  const uint64_t mine = (uint64_t{random()} << 32) | random();
  return hex(wait(world.all_gather(mine), kFileDeadlineSeconds, {.phase = kPhase}).front());
}

FolderClaim::FolderClaim(const Communicator& world, const RunConfig& config, const std::string& run) {
  Agreement agreement(world, part_of([&] {
                        if (world.rank() != 0) return Account{};
                        lock_ = std::make_unique<RunLock>(config.out, run, note);
                        return Account{.numbers = {find_finished(config) ? 1U : 0U}};
                      }));
  wait(agreement.request(), kFileDeadlineSeconds, {.phase = kPhase});
  if (const auto failure = agreement.failure()) throw Error(failure->kind, failure->text, failure->hint);
  is_finished_ = agreement.account_of(0).numbers[0] != 0;
}

fs::path base_of_adapters(const RunConfig& config) {
  if (is_kept(config)) return kept_base(config);
  const std::vector<fs::path> found = checkpoints_at(config.train.init);
  return found.empty() ? fs::path(config.train.init) : fs::absolute(found.front()).lexically_normal();
}

RunConfig on_kept_base(RunConfig config) {
  if (is_kept(config)) config.train.init = kept_base(config).string();
  return config;
}

std::string keep_base(const RunConfig& config) {
  const fs::path kept = kept_base(config);
  const fs::path staged = kept.string() + ".tmp";
  std::error_code none;
  fs::remove_all(kept, none);
  fs::remove_all(staged, none);
  const std::vector<fs::path> found = checkpoints_at(config.train.init);
  if (found.empty() || !may_be_pruned(found.front())) return "";
  try {
    link_files(found.front(), staged);
    fs::rename(staged, kept);
  } catch (const fs::filesystem_error& error) {
    fs::remove_all(staged, none);
    return fmt::format("{} cannot be kept in {} ({}): the adapters are lost when its run prunes it",
                       found.front().string(), kept.string(), error.code().message());
  }
  return fmt::format("{} keeps the weights below the adapters, whatever their run prunes", kept.string());
}

}  // namespace cadre
