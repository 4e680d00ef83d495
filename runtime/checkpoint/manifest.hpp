// SPDX-License-Identifier: Apache-2.0
// cadre.json: what a checkpoint is of, and the length and checksum of its every file. Nothing in it but the names of
// files depends on how many ranks wrote them, so any number of ranks may read them.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/file.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/data/order.hpp"

namespace cadre {

// How far a run has come.
struct TrainProgress {
  int64_t step = 0;  // optimiser steps done
  int64_t tokens_seen = 0;
  DataPosition data = {};  // of the next step

  bool operator==(const TrainProgress&) const = default;
};

inline constexpr const char* kManifestFile = "cadre.json";

struct Manifest {
  static constexpr int kFormatVersion = 1;

  int format_version = kFormatVersion;
  std::string cadre_version;
  int64_t step = 0;  // optimiser steps done
  uint64_t seed = 0;
  int64_t tokens_seen = 0;
  std::optional<DataPosition> data;     // none in checkpoints of earlier versions: step * train.batch windows are done
  int world_size = 1;                   // of the run that wrote it; for people only
  std::string trained = "all";          // the freeze mask of its last step: what a stage of train.stages trains
  std::optional<UpdateCounts> updates;  // of the optimiser; none in checkpoints of earlier versions
  std::vector<int64_t> skipped_steps;   // ascending; had no finite loss and gradient, and trained nothing
  std::string config_hash;              // of model, seed, batch and sequence length; for people only
  std::map<std::string, FileDigest> files;  // by path relative to the checkpoint, with '/'

  bool operator==(const Manifest&) const = default;
};

void to_json(nlohmann::json& content, const Manifest& manifest);
void from_json(const nlohmann::json& content, Manifest& manifest);

// Writes cadre.json, with a checksum of its own content.
void write_manifest(const std::filesystem::path& directory, const Manifest& manifest);

// Throws when cadre.json is missing, damaged, or of a newer format.
Manifest read_manifest(const std::filesystem::path& directory);

// Every regular file below the directory except cadre.json. Reads them all: for files whose writer gave no digest.
std::map<std::string, FileDigest> digest_files(const std::filesystem::path& directory);

// lengths: as fast as listing the files; finds what is missing or cut. full: reads every byte.
enum class Verify { lengths, full };

// Throws an Error that names the file and what is wrong with it: missing, length or checksum.
void verify_file(const std::filesystem::path& directory, const std::string& name, const FileDigest& wanted, Verify how);

// Reads the manifest and verifies every file in order of name; throws at the first bad one.
Manifest verify_checkpoint(const std::filesystem::path& directory, Verify how);

}  // namespace cadre
