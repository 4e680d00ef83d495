// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/evaluate.hpp"

#include "runtime/observe/step_metrics.hpp"
#include "runtime/train/step.hpp"

namespace cadre {

Evaluation evaluate(Worker& worker, const BatchReader& reader, int64_t batch, int64_t sequence_length,
                    int64_t num_batches) {
  LocalStep local = empty_local_step(worker.model());
  const Communicator& world = worker.world();
  for (int64_t i = 0; i < num_batches; ++i) {
    MicroBatch micro_batch(reader, i, part_of({0, batch}, world.rank(), world.size()), sequence_length);
    ArenaScope scope(worker.arena());
    LaneContext ctx = worker.context();
    Model::Saved saved;
    forward(worker, ctx, micro_batch, saved, local);
  }
  StepReduction reduction(world, local);
  worker.await(reduction.request());
  GlobalStep global = reduction.finish();
  return {global.loss, global.num_tokens, std::move(global.expert_counts)};
}

}  // namespace cadre
