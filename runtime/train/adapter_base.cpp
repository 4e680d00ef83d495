// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/adapter_base.hpp"

#include <fmt/format.h>

#include <system_error>
#include <vector>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/manifest.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

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
