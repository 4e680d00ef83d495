// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/stored_model.hpp"

#include <utility>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/save.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/tokenizer/open.hpp"
#include "runtime/train/resume.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

WorkerOptions options_of(const RunConfig& config) {
  return {.model = config.model,
          .parallel = {},
          .exchange = {.strategy = "flat"},
          .compute = config.compute,
          .with_grad = false};
}

}  // namespace

StoredModel::StoredModel(Communicator alone, const RunConfig& config)
    : config_(config), worker_(std::move(alone), options_of(config)), optimizer_(worker_.store(), config.train) {
  CADRE_ASSERT(worker_.world().size() == 1);
}

void StoredModel::load(const fs::path& checkpoint) {
  const bool has_moments = fs::exists(checkpoint / kManifestFile);
  manifest_ = load_checkpoint(checkpoint, worker_.store(), has_moments ? &optimizer_ : nullptr);
}

void StoredModel::values_changed() {
  for (Parameter* parameter : worker_.store().parameters()) ++parameter->version;
}

fs::path StoredModel::save(const fs::path& run_folder, const Manifest& origin) {
  const fs::path root = run_folder / "checkpoints";
  CADRE_CHECK(!fs::exists(root), fmt::format("{} exists already", root.string()), "name another folder with --out");
  std::error_code error;
  fs::create_directories(root, error);
  CADRE_CHECK(!error, fmt::format("cannot create {}: {}", root.string(), error.message()),
              "name a folder that can be written with --out");
  config_.out = run_folder.string();
  config_.checkpoint.resume = "auto";
  const TokenizerFiles tokenizer = read_tokenizer_files(config_.data.tokenizer);
  if (!tokenizer.empty()) config_.data.tokenizer = config_.out;
  const bool tokens_are_bytes = tokenizer.empty() && origin.files.contains(kTokenizerJsonFile);
  CheckpointState state = {.manifest = origin,
                           .model = config_.model,
                           .run_toml = to_toml(config_),
                           .more_files = companion_files(config_.model, tokenizer, tokens_are_bytes)};
  state.manifest.files.clear();
  state.manifest.cadre_version = CADRE_VERSION;
  state.manifest.world_size = 1;
  state.manifest.config_hash = config_hash(config_);
  write_text_file(run_folder / "run.toml", state.run_toml);
  for (const auto& [name, content] : tokenizer) {
    fs::create_directories((run_folder / name).parent_path());
    write_text_file(run_folder / name, content);
  }
  return save_checkpoint({worker_.world(), any_parameter, worker_.deadline_seconds()}, root, state, worker_.store(),
                         optimizer_, {.newest = 1});
}

}  // namespace cadre
