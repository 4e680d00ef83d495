// SPDX-License-Identifier: Apache-2.0
// The parts of a step that training and evaluation share: one micro-batch through a stage, and the norm of the gradients.
#pragma once

#include <cstdint>
#include <functional>

#include "runtime/observe/step_metrics.hpp"
#include "runtime/parallel/micro_batch.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

// Looks at what a stage saved of a micro-batch in its forward pass, and what it gave: y [T,H], undefined after the last.
using StageWatch = std::function<void(int micro_batch, const Stage& stage, const Stage::Saved& saved, const Tensor& y)>;

// Zero counts for each mixture layer of the whole model.
LocalStep empty_local_step(const ModelConfig& config);

// Runs the micro-batch forward through the stage, `y` receives its output, and adds what it was like to `local`. Collective
// over the expert-parallel group.
Task<void> forward(const Stage& stage, LaneContext& ctx, MicroBatch& micro_batch, Tensor x, Stage::Saved& saved,
                   Tensor& y, LocalStep& local);

// The Euclidean norm of the gradient of all that is not frozen, once it is reduced; the same on all ranks. Collective over
// the world.
double gradient_norm(Worker& worker);

// Of all gradients on this rank, bit by bit.
uint64_t gradient_hash(Worker& worker);

}  // namespace cadre
