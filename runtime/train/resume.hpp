// SPDX-License-Identifier: Apache-2.0
// What a run goes on from: the newest checkpoint that is whole, if it is of this run.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/optim/adamw.hpp"
#include "runtime/tokenizer/open.hpp"
#include "runtime/train/worker.hpp"

namespace cadre {

// Of what must not change between a save and the run that goes on from it: it decides the data order and the model.
std::string continuity_hash(const RunConfig& config);

// Collective over the world. Fills parameters and moments from the newest checkpoint that every rank finds whole, where
// checkpoint.resume has it so, and returns the step after which it was saved; 0 without one. Throws when that checkpoint is
// of a run with another model, data order, tokenizer or other stages: nothing older would fit either.
int64_t resume_from_checkpoint(Worker& worker, AdamW& optimizer, const RunConfig& config,
                               const TokenizerFiles& tokenizer_files);

}  // namespace cadre
