// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/executor.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/verify.hpp"

namespace cadre {

Program program_of(const RunConfig& config) {
  return make_program(config.parallel.schedule, /*num_ranks=*/1, static_cast<int>(config.train.micro_batches));
}

struct Executor::Live {
  Live(Worker& worker, int lane_index, int number, MicroBatch tokens, double token_scale)
      : lane(lane_index),
        micro_batch(number),
        batch(std::move(tokens)),
        scope(worker.arena(lane_index)),
        context(worker.training_context(token_scale, lane_index)) {
    worker.lane(lane_index).position.step = worker.lane().position.step;
  }

  int lane;
  int micro_batch;
  MicroBatch batch;
  ArenaScope scope;
  LaneContext context;
  Model::Saved saved;
};

Executor::Executor(Worker& worker, const Program& program) : worker_(worker), program_(program) {
  CADRE_CHECK(program.num_ranks == 1 && program.num_stages == 1,
              fmt::format("schedule {} of {} ranks and {} stages", program.name, program.num_ranks, program.num_stages),
              "pipelines of several stages cannot be run yet; use 1f1b or pair");
  const int needed = num_lanes(program);
  CADRE_ASSERT(needed <= worker.num_lanes());
  live_.resize(static_cast<size_t>(needed));
}

Executor::~Executor() = default;

int Executor::num_lanes(const Program& program) { return verify(program).peak_live_forwards.front(); }

void Executor::run(const StepWork& work, LocalStep& local) {
  int forwards_left = program_.num_micro_batches;
  const auto forward_over = [&] {
    if (--forwards_left == 0) work.forwards_done();
  };
  const auto forward_pass = [&](Live& one) {
    return forward(worker_.model(), one.context, one.batch, one.saved, local);
  };
  for (const Op& op : program_.ops.front()) {
    if (op.kind == OpKind::forward) {
      Live& one = begin(work, op.chunk.micro_batch);
      Task<void> pass = forward_pass(one);
      worker_.run({{&worker_.lane(one.lane), &pass}});
      forward_over();
    } else if (op.kind == OpKind::backward) {
      Live& one = live(op.chunk.micro_batch);
      Task<void> pass = worker_.model().backward(one.context, one.saved);
      worker_.run({{&worker_.lane(one.lane), &pass}});
      end(op.chunk.micro_batch);
    } else if (op.kind == OpKind::overlapped) {
      Live& ahead = begin(work, op.chunk.micro_batch);
      Live& behind = live(op.back_chunk.micro_batch);
      Task<void> pass_ahead = forward_pass(ahead);
      Task<void> pass_behind = worker_.model().backward(behind.context, behind.saved);
      worker_.run({{&worker_.lane(behind.lane), &pass_behind}, {&worker_.lane(ahead.lane), &pass_ahead}});
      end(op.back_chunk.micro_batch);
      forward_over();
    } else {
      throw Error(ErrorKind::internal, "no executor for " + name_of(program_, op));
    }
  }
}

Executor::Live& Executor::begin(const StepWork& work, int micro_batch) {
  const auto free = std::find(live_.begin(), live_.end(), nullptr);
  CADRE_ASSERT(free != live_.end());
  *free = std::make_unique<Live>(worker_, static_cast<int>(free - live_.begin()), micro_batch, work.read(micro_batch),
                                 work.token_scale);
  return **free;
}

Executor::Live& Executor::live(int micro_batch) {
  const auto found = std::find_if(live_.begin(), live_.end(),
                                  [&](const auto& one) { return one != nullptr && one->micro_batch == micro_batch; });
  CADRE_ASSERT(found != live_.end());
  return **found;
}

void Executor::end(int micro_batch) { live_[static_cast<size_t>(live(micro_batch).lane)].reset(); }

}  // namespace cadre
