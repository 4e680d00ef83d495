// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/load_newest.hpp"

#include <optional>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"
#include "comm/job/wait.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPhase = "loading a checkpoint";

// The next candidate of rank 0, or nothing.
fs::path announced(const Communicator& world, double deadline_seconds, const fs::path& mine) {
  Agreement told(world, Account{.text = mine.string()});
  wait(told.request(), deadline_seconds, {.phase = kPhase});
  if (const std::optional<Failure> failure = told.failure()) throw failure->error(kPhase);
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
    failure = attempt_together(world, deadline_seconds, kPhase, [&] { load(path); });
    if (!failure) return path;
    if (failure->kind != ErrorKind::input && failure->kind != ErrorKind::environment) throw failure->error(kPhase);
    if (world.rank() == 0) {
      warn(fmt::format("warning: checkpoint {} is left out: rank {}: {}", path.string(), failure->rank, failure->text));
    }
  }
}

}  // namespace cadre
