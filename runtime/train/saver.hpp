// SPDX-License-Identifier: Apache-2.0
// The saves of a run: one at a time, at once or (checkpoint.async) in the background, behind the steps that follow. A save
// that fails is said and costs the run nothing but that checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "comm/base/buffer.hpp"
#include "runtime/checkpoint/save.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

// Ranks wait this long for those that write or read files.
inline constexpr double kFileDeadlineSeconds = 1800.0;

std::filesystem::path checkpoint_root(const RunConfig& config);

class Saver {
 public:
  using Say = std::function<void(const std::string& line)>;

  // Collective over the world of the worker. `say` is called on rank 0 alone.
  Saver(Worker& worker, const RunConfig& config, const Optimizer& optimizer, Say say);

  // Collective over the world: writes out/checkpoints/step_<step>, or begins to, once a save before it is over. Throws on
  // all ranks only on mistakes of ours.
  void save(const CheckpointState& state);
  // Between steps: goes on with the save under way, without waiting.
  void poll();
  // Waits for the save under way. Collective over the world.
  void finish();

  // Throws ErrorKind::environment unless the last save stands; for the end of a run. Collective over the world.
  void require_saved();

  // What saves took of this rank's time since the last call: copies, files and waits.
  double take_stall_ms();

 private:
  ParameterChoice saved_here() const;
  void conclude();

  Worker& worker_;
  const RunConfig& config_;
  const Optimizer& optimizer_;
  Say say_;
  std::optional<Communicator> own_world_;  // of saves in the background
  std::shared_ptr<Buffer> space_;          // the same
  std::optional<CheckpointSave> save_;     // under way
  int64_t step_ = 0;                       // of the last save
  int64_t begin_ns_ = 0;
  double stall_ms_ = 0.0;  // of the last save
  double untaken_stall_ms_ = 0.0;
  std::optional<Failure> failure_;  // of the last save, if it does not stand
};

}  // namespace cadre
