// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/load_newest.hpp"

#include <optional>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/all_or_none.hpp"

namespace cadre {

namespace fs = std::filesystem;

fs::path load_newest(const Communicator& world, double deadline_seconds, const std::vector<fs::path>& candidates,
                     const std::function<void(const fs::path&)>& load,
                     const std::function<void(const std::string&)>& warn) {
  const AllOrNone together(world, deadline_seconds, "loading a checkpoint");
  std::optional<Failure> failure;
  for (size_t tried = 0;; ++tried) {
    const fs::path path = together.broadcast(tried < candidates.size() ? candidates[tried].string() : "", 0);
    if (path.empty() && failure) {
      throw Error(failure->kind, fmt::format("none of the checkpoints can be used; the last one: {}", failure->text),
                  "restore one of them, or start afresh with checkpoint.resume=never");
    }
    if (path.empty()) return path;
    failure = together.attempt([&] { load(path); });
    if (!failure) return path;
    if (failure->kind != ErrorKind::input && failure->kind != ErrorKind::environment) {
      throw Error(failure->kind, fmt::format("rank {}: {}", failure->rank, failure->text));
    }
    if (world.rank() == 0) {
      warn(fmt::format("warning: checkpoint {} is left out: rank {}: {}", path.string(), failure->rank, failure->text));
    }
  }
}

}  // namespace cadre
