// SPDX-License-Identifier: Apache-2.0
// The parts of a step that training and evaluation share: one micro-batch through the model, and the gradients summed
// over the ranks.
#pragma once

#include "runtime/observe/step_metrics.hpp"
#include "runtime/train/micro_batch.hpp"
#include "runtime/train/worker.hpp"

namespace cadre {

// Zero counts for each mixture layer of the model.
LocalStep empty_local_step(const Model& model);

// Runs the micro-batch forward and adds what it was like to `local`. Collective over the expert-parallel group.
Task<void> forward(const Model& model, LaneContext& ctx, MicroBatch& micro_batch, Model::Saved& saved,
                   LocalStep& local);

// Sums the gradients of shared parameters over all ranks and those of experts over the ranks that hold the same ones.
// Collective over the world.
void reduce_gradients(Worker& worker);

// The Euclidean norm of the whole model's gradient, after reduce_gradients; the same on all ranks. Collective over the
// expert-parallel group.
double gradient_norm(Worker& worker);

}  // namespace cadre
