// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/directory.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"
#include "comm/job/wait.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step_";
constexpr std::string_view kStagedSuffix = ".tmp";
constexpr const char* kLatest = "latest";
constexpr const char* kBest = "best";

std::string checkpoint_name(int64_t step) {
  CADRE_CHECK(step >= 0, fmt::format("a checkpoint has step {}; it must be at least 0", step));
  return fmt::format("{}{:08}", kPrefix, step);
}

std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
  // The round trip refuses other spellings of a number.
  if (parsed.ec != std::errc{} || parsed.ptr != end || step < 0 || checkpoint_name(step) != name) return std::nullopt;
  return step;
}

fs::path staged_path(const fs::path& root, int64_t step) {
  return root / (checkpoint_name(step) + std::string(kStagedSuffix));
}

// Calls a std::filesystem function that reports through an error code; a failure names what was to be done.
template <class Call>
void attempt(const std::string& action, Call&& call) {
  std::error_code error;
  call(error);
  if (error) {
    throw Error(ErrorKind::environment, fmt::format("cannot {}: {}", action, error.message()),
                "check that the folder exists, that you may write to it and that it has space");
  }
}

void rename_path(const fs::path& from, const fs::path& to) {
  attempt(fmt::format("rename {} to {}", from.string(), to.string()),
          [&](std::error_code& error) { fs::rename(from, to, error); });
}

void remove_tree(const fs::path& path) {
  attempt(fmt::format("remove {}", path.string()), [&](std::error_code& error) { fs::remove_all(path, error); });
}

std::vector<fs::path> children(const fs::path& directory) {
  std::vector<fs::path> paths;
  attempt(fmt::format("list {}", directory.string()), [&](std::error_code& error) {
    for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
      paths.push_back(entry->path());
    }
  });
  return paths;
}

void remove_leftovers(const fs::path& root) {
  for (const fs::path& path : children(root)) {
    const std::string name = path.filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kStagedSuffix)) remove_tree(path);
  }
}

// Files before the names that lead to them.
void sync_tree(const fs::path& directory) {
  for (const fs::path& path : children(directory)) fs::is_directory(path) ? sync_tree(path) : sync_path(path);
  sync_path(directory);
}

// Where the file system can exchange two directories there is a whole checkpoint of this step at any moment. Elsewhere
// the old one is set aside just before: an interruption between the two renames leaves the steps before this one.
void replace_checkpoint(const fs::path& staged, const fs::path& target) {
  if (::renameat2(AT_FDCWD, staged.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) return;
  rename_path(target, target.string() + ".replaced" + std::string(kStagedSuffix));
  rename_path(staged, target);
}

// The step in the manifest of a folder.
std::optional<int64_t> step_in(const fs::path& directory) {
  try {
    const int64_t step = read_manifest(directory).step;
    return step >= 0 ? std::optional(step) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// A copied run has a folder where the link was. It stays under the name of its step, or beside another of that step;
// only an exact copy goes.
void clear_latest_folder(const fs::path& root) {
  const fs::path latest = root / kLatest;
  if (!fs::is_directory(fs::symlink_status(latest))) return;
  const std::optional<int64_t> step = step_in(latest);
  const fs::path twin = root / (step ? checkpoint_name(*step) : "latest.copied");
  if (!fs::exists(twin)) return rename_path(latest, twin);
  if (step && step_in(twin) == step && read_manifest(twin) == read_manifest(latest)) return remove_tree(latest);
  for (int i = 1;; ++i) {
    const fs::path aside = fmt::format("{}.copied.{}", latest.string(), i);
    if (!fs::exists(aside)) return rename_path(latest, aside);
  }
}

// The name in a link, or in a file that took the place of one.
std::string name_in_link(const fs::path& link) {
  std::error_code none;
  if (fs::is_symlink(link, none)) return fs::read_symlink(link, none).filename().string();
  if (!fs::is_regular_file(link, none)) return "";
  std::string name;
  std::ifstream(link) >> name;
  return fs::path(name).filename().string();
}

void point_link_at(const fs::path& link, const std::string& name) {
  const fs::path fresh = link.string() + std::string(kStagedSuffix);
  remove_tree(fresh);
  attempt(fmt::format("create the link {}", fresh.string()),
          [&](std::error_code& error) { fs::create_directory_symlink(name, fresh, error); });
  rename_path(fresh, link);
}

void point_latest_at(const fs::path& root, const std::string& name) {
  clear_latest_folder(root);
  point_link_at(root / kLatest, name);
}

}  // namespace

fs::path stage_checkpoint(const fs::path& root, int64_t step) {
  const fs::path staged = staged_path(root, step);
  const auto create = [](const fs::path& path) {
    attempt(fmt::format("create {}", path.string()),
            [&](std::error_code& error) { fs::create_directories(path, error); });
  };
  create(root);
  remove_leftovers(root);
  // Never one that is there already, such as a link of another user.
  attempt(fmt::format("create {}", staged.string()), [&](std::error_code& error) {
    if (::mkdir(staged.c_str(), 0777) != 0) error.assign(errno, std::generic_category());
  });
  return staged;
}

fs::path commit_checkpoint(const fs::path& root, int64_t step) {
  const fs::path staged = staged_path(root, step);
  const fs::path target = root / checkpoint_name(step);
  CADRE_CHECK(fs::is_directory(staged), fmt::format("{} is gone; it cannot be committed", staged.string()),
              "do two runs save to the same directory?");
  sync_tree(staged);
  fs::exists(target) ? replace_checkpoint(staged, target) : rename_path(staged, target);
  sync_path(root);
  point_latest_at(root, checkpoint_name(step));
  sync_path(root);
  remove_leftovers(root);
  return target;
}

void discard_staged(const fs::path& root) noexcept {
  try {
    if (fs::exists(root)) remove_leftovers(root);
  } catch (const std::exception&) {
    // The next save tries again, and says why it cannot.
  }
}

std::optional<CheckpointPath> latest_checkpoint(const fs::path& root) {
  const fs::path latest = root / kLatest;
  std::error_code none;
  if (!fs::is_directory(fs::symlink_status(latest, none))) {
    const std::string name = name_in_link(latest);
    const auto step = step_of(name);
    if (!step || !fs::is_directory(root / name, none)) return std::nullopt;
    return CheckpointPath{*step, root / name};
  }
  const auto step = step_in(latest);
  if (!step) return std::nullopt;
  const fs::path twin = root / checkpoint_name(*step);
  return CheckpointPath{*step, fs::is_directory(twin, none) ? twin : latest};
}

std::vector<CheckpointPath> list_checkpoints(const fs::path& root) {
  std::vector<CheckpointPath> checkpoints;
  if (!fs::exists(root)) return checkpoints;
  for (const fs::path& path : children(root)) {
    const auto step = step_of(path.filename().string());
    if (step && fs::is_directory(path)) checkpoints.push_back({*step, path});
  }
  const auto latest = latest_checkpoint(root);
  if (latest && std::ranges::find(checkpoints, latest->step, &CheckpointPath::step) == checkpoints.end()) {
    checkpoints.push_back(*latest);
  }
  std::ranges::sort(checkpoints, {}, [&](const CheckpointPath& checkpoint) {
    return std::tuple(latest && checkpoint.step > latest->step, -checkpoint.step);
  });
  return checkpoints;
}

std::vector<fs::path> checkpoints_at(const fs::path& path) {
  std::error_code none;
  if (fs::exists(path / kManifestFile, none) || fs::exists(path / "config.json", none) ||
      fs::exists(path / kAdapterConfigFile, none)) {
    return {path};
  }
  const bool is_lost_link = path.filename() == kLatest && !fs::is_directory(path, none);
  for (const fs::path& root : {is_lost_link ? path.parent_path() : path / "checkpoints", path}) {
    std::vector<fs::path> found;
    if (!fs::is_directory(root, none)) continue;
    for (const CheckpointPath& checkpoint : list_checkpoints(root)) found.push_back(checkpoint.path);
    if (!found.empty()) return found;
  }
  return {};
}

bool may_be_pruned(const fs::path& checkpoint) {
  std::error_code none;
  if (!fs::exists(checkpoint / kManifestFile, none)) return false;
  const std::string name = fs::canonical(checkpoint, none).filename().string();
  return name == kLatest || step_of(name).has_value();
}

void mark_best(const fs::path& root, int64_t step) {
  const std::string name = checkpoint_name(step);
  if (!fs::is_directory(root / name)) return;
  point_link_at(root / kBest, name);
  sync_path(root);
}

void prune_checkpoints(const fs::path& root, const KeepRule& keep) {
  CADRE_CHECK(keep.newest >= 1, fmt::format("{} checkpoints are to be kept; it must be at least 1", keep.newest));
  const auto checkpoints = list_checkpoints(root);
  const auto latest = latest_checkpoint(root);
  const std::string best = name_in_link(root / kBest);
  // What lies beyond `latest` belongs to a course that the run has left.
  const auto is_milestone = [&](int64_t step) {
    return keep.every > 0 && step % keep.every == 0 && latest && step <= latest->step;
  };
  for (size_t i = keep.newest; i < checkpoints.size(); ++i) {
    if (is_milestone(checkpoints[i].step) || checkpoints[i].path.filename() == best) continue;
    // First out of the list, then away: a half-removed checkpoint must not look like one.
    const fs::path doomed = checkpoints[i].path.string() + ".pruned" + std::string(kStagedSuffix);
    rename_path(checkpoints[i].path, doomed);
    remove_tree(doomed);
  }
}

namespace {

constexpr const char* kLoadPhase = "loading a checkpoint";

// The next candidate of rank 0, or nothing.
fs::path announced(const Communicator& world, double deadline_seconds, const fs::path& mine) {
  Agreement told(world, Account{.text = mine.string()});
  wait(told.request(), deadline_seconds, {.phase = kLoadPhase});
  if (const std::optional<Failure> failure = told.failure()) throw failure->error(kLoadPhase);
  return told.account_of(0).text;
}

}  // namespace

fs::path load_newest(const Communicator& world, double deadline_seconds, const std::vector<fs::path>& candidates,
                     const std::function<void(const fs::path&)>& load,
                     const std::function<void(const std::string&)>& warn) {
  std::optional<Failure> failure;
  for (size_t tried = 0;; ++tried) {
    const fs::path path = announced(world, deadline_seconds, tried < candidates.size() ? candidates[tried] : "");
    if (path.empty() && failure) {
      throw Error(failure->kind, fmt::format("none of the checkpoints can be used; the last one: {}", failure->text),
                  "restore one of them, or start afresh with checkpoint.resume=never");
    }
    if (path.empty()) return path;
    failure = attempt_together(world, deadline_seconds, kLoadPhase, [&] { load(path); });
    if (!failure) return path;
    if (failure->kind != ErrorKind::input && failure->kind != ErrorKind::environment) throw failure->error(kLoadPhase);
    if (world.rank() == 0) {
      warn(fmt::format("warning: checkpoint {} is left out: rank {}: {}", path.string(), failure->rank, failure->text));
    }
  }
}

}  // namespace cadre
