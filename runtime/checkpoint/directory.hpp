// SPDX-License-Identifier: Apache-2.0
// Where checkpoints live and how one comes into being. Below a root directory:
//   step_00000100/        a whole checkpoint: the name appears only when every byte is on the disk
//   step_00000200.tmp/    one that is being written, or was when its run died
//   best                  a symbolic link to the checkpoint of the best evaluation, where a run looks for that
//   latest                a symbolic link to the checkpoint committed last. Programs that copy a run may leave a copy of that
//                         folder, or a file with its name, in its place; both are read, and replaced by the next commit
// A checkpoint is never touched before the one that replaces it is committed. One process of a run calls these.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

struct CheckpointPath {
  int64_t step;
  std::filesystem::path path;

  bool operator==(const CheckpointPath&) const = default;
};

// Which checkpoints stay when a new one is committed.
struct KeepRule {
  size_t newest = 1;  // so many from the front of list_checkpoints; at least 1
  int64_t every = 0;  // and, of the steps up to `latest`, all multiples of this; 0: none
};

// Removes what earlier, interrupted saves left behind and creates an empty step_<step>.tmp, to be filled by every rank.
std::filesystem::path stage_checkpoint(const std::filesystem::path& root, int64_t step);

// Puts the staged files onto the disk, gives the directory its final name and moves `latest` to it. A checkpoint of the
// same step is replaced. Returns the final path.
std::filesystem::path commit_checkpoint(const std::filesystem::path& root, int64_t step);

// Removes what stage_checkpoint made, as far as that can be done: for a save that failed.
void discard_staged(const std::filesystem::path& root) noexcept;

// Where `latest` points, if that is a checkpoint; `latest` itself where it is a folder and no other holds its step.
std::optional<CheckpointPath> latest_checkpoint(const std::filesystem::path& root);

// In the order in which to try them: `latest`, the steps before it newest first, then steps beyond it newest first,
// which a run left behind that went back to an earlier step. Without `latest`: newest first. Empty without a root.
std::vector<CheckpointPath> list_checkpoints(const std::filesystem::path& root);

// What a path given by a user means, in the order in which to try them: a checkpoint is itself; the folder of a run, its
// checkpoints folder, or a `latest` that is missing there, stand for list_checkpoints(). Empty when it is none of these.
std::vector<std::filesystem::path> checkpoints_at(const std::filesystem::path& path);

// Whether a run that goes on may remove or rename this checkpoint: its name, behind links, is one of those above.
bool may_be_pruned(const std::filesystem::path& checkpoint);

// Moves the link `best` to the checkpoint of the step. Does nothing where there is none.
void mark_best(const std::filesystem::path& root, int64_t step);

// Removes all that the rule does not keep, but for the one that `best` points to.
void prune_checkpoints(const std::filesystem::path& root, const KeepRule& keep);

// Going on from the newest checkpoint that is whole, when those before it in the list are damaged.

// Collective over `world`. Runs `load` with each of the candidates of rank 0 (see list_checkpoints) in turn, until none
// of the ranks throws, and returns that one; empty without candidates. What a rank throws of one, be it input or
// environment, goes to `warn` on rank 0 as a line that names the rank, the file and the reason. Throws when all are
// damaged, and at once on an error of another kind.
std::filesystem::path load_newest(const Communicator& world, double deadline_seconds,
                                  const std::vector<std::filesystem::path>& candidates,
                                  const std::function<void(const std::filesystem::path&)>& load,
                                  const std::function<void(const std::string&)>& warn);

}  // namespace cadre
