// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/evaluate.hpp"

#include "runtime/observe/step_metrics.hpp"
#include "runtime/train/step.hpp"

namespace cadre {

Evaluation evaluate(Worker& worker, const BatchReader& reader, const RunConfig& config, int64_t num_batches) {
  LocalStep local = empty_local_step(worker.model());
  const Communicator& world = worker.world();
  const TrainConfig& train = config.train;
  for (int64_t i = 0; i < num_batches * train.micro_batches; ++i) {
    const SequenceRange global = part_of({0, train.batch}, i % train.micro_batches, train.micro_batches);
    MicroBatch micro_batch(reader, i / train.micro_batches, part_of(global, world.rank(), world.size()),
                           config.data.sequence_length);
    ArenaScope scope(worker.arena());
    LaneContext ctx = worker.inference_context();
    Model::Saved saved;
    Task<void> pass = forward(worker.model(), ctx, micro_batch, saved, local);
    worker.run(pass);
  }
  StepReduction reduction(world, local);
  worker.await(reduction.request());
  GlobalStep global = reduction.finish();
  return {global.loss, global.num_tokens, std::move(global.expert_counts)};
}

}  // namespace cadre
