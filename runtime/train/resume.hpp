// SPDX-License-Identifier: Apache-2.0
// What a run goes on from: the newest checkpoint that is whole. Only weights of other names or shapes are refused; every
// other change of the configuration, and of the data, is noted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/manifest.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

// Of model, seed, batch and sequence length, for people who compare runs.
std::string config_hash(const RunConfig& config);

struct Resumed {
  TrainProgress progress;          // the same on all ranks
  std::vector<std::string> notes;  // on rank 0: what is not as it was at the save
};

// Collective over the world. Fills parameters and moments from the newest checkpoint that every rank finds whole, where
// checkpoint.resume has it so; else the progress is that of a fresh run on the data of `reader`. Throws when that checkpoint
// has weights of other names or shapes, or another tokenizer: nothing older would fit either.
Resumed resume_from_checkpoint(Worker& worker, Optimizer& optimizer, const RunConfig& config, const BatchReader& reader,
                               uint64_t fingerprint, const TokenizerFiles& tokenizer_files);

// The configuration that the newest checkpoint was saved with, where checkpoint.resume has the run go on from it; none where
// there is none or it cannot be read. For rank 0.
std::optional<RunConfig> config_to_resume(const RunConfig& config);

// `config` with a choice of products in place of "auto": that of the checkpoint which the run goes on from, else that of rank 0.
// With device = cuda as it is. Collective over `world`. `note` on rank 0: where the CPUs of the ranks differ.
RunConfig with_products(const Communicator& world, RunConfig config, std::string& note);

// Collective over the world. Fills parameters with the weights in the directory train.init, as load_checkpoint does; with
// adapters those that are fixed. MTP modules that its files have none of stay as they are, which `notes` say. Throws, on all ranks, on what is missing, damaged or of
// another shape.
void start_from_weights(Worker& worker, const RunConfig& config, std::vector<std::string>& notes);

// Collective over the world. Fills the adapters with those in the directory adapter.init; does nothing without one. Throws, on
// all ranks, where they have another rank, scale or targets than the run.
void start_from_adapters(Worker& worker, const RunConfig& config, std::vector<std::string>& notes);

// Collective over `world`. The step after the newest checkpoint, whole or not; 1 without one.
int64_t likely_next_step(const Communicator& world, const RunConfig& config);

}  // namespace cadre
