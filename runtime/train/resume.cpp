// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/resume.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <string_view>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "comm/base/random.hpp"
#include "runtime/checkpoint/digest.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/load_newest.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/config/train_stages.hpp"
#include "runtime/tokenizer/byte_tokenizer_file.hpp"
#include "runtime/train/saver.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// Rank 0 looks, because only one view of a shared file system can be right.
std::vector<fs::path> checkpoints_to_try(const RunConfig& config, int rank) {
  const std::string& wanted = config.checkpoint.resume;
  if (rank != 0 || wanted == "never") return {};
  std::vector<fs::path> paths;
  if (wanted != "auto") {
    paths = checkpoints_at(wanted);
    if (paths.empty()) paths = {wanted};  // to be refused by name
    return paths;
  }
  for (const CheckpointPath& checkpoint : list_checkpoints(checkpoint_root(config))) paths.push_back(checkpoint.path);
  return paths;
}

// What the last step trained must be what the configuration says of it: else steps were counted that were none.
void check_stage(const fs::path& path, const Manifest& manifest, const TrainConfig& config) {
  if (manifest.step == 0) return;
  const std::string_view expected = name_of(trained_at(train_stages(config), manifest.step - 1));
  CADRE_CHECK(manifest.trained == expected,
              fmt::format("{}: step {} trained {}, train.stages = \"{}\" says {}", path.string(), manifest.step,
                          manifest.trained, config.stages, expected),
              "go on with the train.stages of its run.toml");
}

// Of a file that says which token begins a text nothing that was trained depends.
void check_tokenizer(const fs::path& path, const Manifest& manifest, const TokenizerFiles& files,
                     const std::string& tokenizer) {
  const char* name = main_file_of(files);
  bool is_same = true;
  for (const char* kind : {kTokenizerModelFile, kTokenizerJsonFile}) {
    const auto saved = manifest.files.find(kind);
    if (saved == manifest.files.end() || saved->second == digest_of(byte_tokenizer_json())) continue;
    is_same &= files.contains(kind) && digest_of(files.at(kind)) == saved->second;
  }
  is_same &= name == nullptr || manifest.files.contains(name);
  CADRE_CHECK(
      is_same,
      fmt::format("{} was trained with another tokenizer than data.tokenizer = \"{}\"", path.string(), tokenizer),
      "go on with the tokenizer that lies in it");
}

}  // namespace

std::string continuity_hash(const RunConfig& config) {
  return fmt::format("{:016x}", hash_name(fmt::format("{} seed {} batch {} micro_batches {} sequence_length {}",
                                                      to_json(config.model).dump(), config.seed, config.train.batch,
                                                      config.train.micro_batches, config.data.sequence_length)));
}

int64_t resume_from_checkpoint(Worker& worker, AdamW& optimizer, const RunConfig& config,
                               const TokenizerFiles& tokenizer_files) {
  Manifest manifest;
  const std::string hash = continuity_hash(config);
  // What belongs to another run is no damage.
  const auto load = [&](const fs::path& path) {
    manifest = read_manifest(path);
    if (manifest.config_hash == hash) load_checkpoint(path, worker.store(), &optimizer);
  };
  const fs::path path =
      load_newest(worker.world(), kFileDeadlineSeconds, checkpoints_to_try(config, worker.world().rank()), load,
                  [](const std::string& line) { say(line + '\n'); });
  if (path.empty()) return 0;
  CADRE_CHECK(manifest.config_hash == hash,
              fmt::format("{} was saved with another model, seed, batch or sequence length", path.string()),
              "go on with the configuration in its run.toml, choose another out=, or checkpoint.resume=never");
  check_stage(path, manifest, config.train);
  check_tokenizer(path, manifest, tokenizer_files, config.data.tokenizer);
  optimizer.set_skipped_steps(manifest.skipped_steps);
  return manifest.step;
}

}  // namespace cadre
