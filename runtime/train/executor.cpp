// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/executor.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/base/out_of_memory.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/verify.hpp"

namespace cadre {
namespace {

constexpr int kMaxTag = 32766;

const char* span_of(OpKind kind) {
  switch (kind) {
    case OpKind::forward: return "forward";
    case OpKind::backward: return "backward";
    case OpKind::backward_input: return "backward input";
    case OpKind::backward_weight: return "backward weight";
    case OpKind::overlapped: return "overlapped";
    case OpKind::receive: return "receive";
    case OpKind::send: return "send";
  }
  return "";
}

}  // namespace

Program program_of(const RunConfig& config) {
  Program program = make_program(config.parallel.schedule, static_cast<int>(config.parallel.pipeline),
                                 static_cast<int>(config.train.micro_batches));
  CADRE_CHECK(program.num_stages <= config.model.num_hidden_layers,
              fmt::format("parallel.pipeline = {} with {} makes {} stages, allowed: at most the {} layers of the model",
                          config.parallel.pipeline, program.name, program.num_stages, config.model.num_hidden_layers),
              "a smaller pipeline, or a schedule with one stage a rank, such as zb1p");
  return program;
}

struct Executor::Live {
  Live(Worker& worker, const StepWork& work, DeferredQueue& deferred, int lane_index, Chunk at)
      : lane(lane_index),
        chunk(at),
        stage(worker.model().stage(at.stage)),
        batch(work.read(at.micro_batch)),
        scope(worker.arena(lane_index)),
        context(worker.training_context(work.token_scale, deferred, lane_index)) {
    context.tokens = batch.facts(work.seed);
    worker.lane(lane_index).position = {.step = work.step, .micro_batch = at.micro_batch};
  }

  int lane;
  Chunk chunk;
  Stage& stage;
  MicroBatch batch;
  ArenaScope scope;
  LaneContext context;
  Stage::Saved saved;
  Buffer input;                 // of the forward pass
  Buffer output_gradient;       // what the backward pass begins with
  uint64_t deferred_until = 0;  // weight gradients of this chunk are among the first so many of the queue
};

Executor::Executor(Worker& worker, const Program& program) : worker_(worker), program_(program), rank_(worker.row()) {
  CADRE_ASSERT(program.num_ranks == worker.grid().pipeline);
  CADRE_CHECK(2 * program.num_micro_batches <= kMaxTag,
              fmt::format("train.micro_batches = {}, allowed: at most {}", program.num_micro_batches, kMaxTag / 2),
              "every message of the pipeline has a tag of its own");
  const int needed = std::ranges::max(num_lanes(program));
  CADRE_ASSERT(needed <= worker.num_lanes());
  live_.resize(static_cast<size_t>(needed));
}

Executor::~Executor() = default;

std::vector<int> Executor::num_lanes(const Program& program) {
  std::vector<int> lanes = verify(program).peak_live_forwards;
  for (size_t rank = 0; rank < lanes.size(); ++rank) {
    if (std::ranges::count(program.ops[rank], OpKind::overlapped, &Op::kind) > 0) ++lanes[rank];
  }
  return lanes;
}

void Executor::run(const StepWork& work, LocalStep& local, Overlap overlap) {
  work_ = &work;
  local_ = &local;
  overlap_ = overlap;
  const OpList& ops = program_.ops[static_cast<size_t>(rank_)];
  forwards_left_ = static_cast<int>(std::ranges::count_if(
      ops, [](const Op& op) { return op.kind == OpKind::forward || op.kind == OpKind::overlapped; }));
  backwards_left_.clear();
  const PollScope polling(worker_.poller());
  try {
    for (const Op& op : ops) run(op);
    finish_carried_weights();
  } catch (const OutOfMemory& error) {
    const Position at = worker_.job().tracer().whereabouts().at;
    if (at.micro_batch < 0) throw;
    throw error.at(at, work.num_tokens(at.micro_batch));
  }
  worker_.lane().position = {.step = work.step, .phase = "send"};
  for (Request& sent : sends_) worker_.await(sent);
  sends_.clear();
  CADRE_ASSERT(rows_.empty());
}

void Executor::run(const Op& op) {
  const TraceSpan span(worker_.job().tracer(), TraceKind::op,
                       {.step = work_->step, .micro_batch = op.chunk.micro_batch, .phase = span_of(op.kind)});
  switch (op.kind) {
    case OpKind::receive: return post_receive(op);
    case OpKind::send: return post_send(op);
    case OpKind::forward: {
      Live& one = begin(op.chunk);
      Task<void> pass = forward_pass(one);
      run_passes({{&worker_.lane(one.lane), &pass}});
      return forward_over();
    }
    case OpKind::backward: {
      Live& one = live(op.chunk);
      Task<void> pass = backward_pass(one, Stage::Weights::at_once);
      run_passes({{&worker_.lane(one.lane), &pass}});
      return end(op.chunk);
    }
    case OpKind::overlapped: {
      Live& behind = live(op.back_chunk);
      Live& ahead = begin(op.chunk);
      Task<void> backward = backward_pass(behind, Stage::Weights::later);
      Task<void> forward = forward_pass(ahead);
      // The backward pass begins with an exchange and so starts first, in the shadow of attention. From then on the forward
      // pass comes first: it waits once more in each layer, and weight gradients fill the end of the backward pass.
      run_passes({{&worker_.lane(ahead.lane), &forward}, {&worker_.lane(behind.lane), &backward}});
      carry_weights_of(behind);
      return forward_over();
    }
    case OpKind::backward_input: {
      Live& one = live(op.chunk);
      Task<void> pass = backward_pass(one, Stage::Weights::later);
      run_passes({{&worker_.lane(one.lane), &pass}});
      one.deferred_until = deferred_.num_pushed();
      return;
    }
    case OpKind::backward_weight:
      deferred_.run_first(live(op.chunk).deferred_until, worker_.job().tracer());
      return end(op.chunk);
  }
}

void Executor::run_passes(std::vector<Engine::Run> runs) {
  if (overlap_ == Overlap::on) return worker_.run(std::move(runs), &deferred_);
  for (const Engine::Run& run : runs) worker_.run({run});
}

// Its weight gradients are left to the waits of the next overlapped op.
void Executor::carry_weights_of(Live& one) {
  one.deferred_until = deferred_.num_pushed();
  finish_carried_weights();
  carried_ = &one;
}

void Executor::finish_carried_weights() {
  if (carried_ == nullptr) return;
  deferred_.run_first(carried_->deferred_until, worker_.job().tracer());
  end(carried_->chunk);
  carried_ = nullptr;
}

Task<void> Executor::forward_pass(Live& one) {
  const Work work = {Pass::forward, one.chunk};
  Tensor x;
  if (work_before(program_, work)) {
    Task<Tensor> rows = rows_for(work, one);
    x = co_await rows;
  }
  Tensor y;
  Task<void> pass = cadre::forward(one.stage, one.context, one.batch, x, one.saved, y, *local_);
  co_await pass;
  if (work_->forward_done || y.defined()) {  // the host reads them
    Request computed = worker_.kernels().launched();
    co_await computed;
  }
  if (work_->forward_done) work_->forward_done(one.chunk.micro_batch, one.stage, one.saved, y);
  hand_on(work, y);
}

Task<void> Executor::backward_pass(Live& one, Stage::Weights weights) {
  const Work work = {Pass::backward, one.chunk};
  Tensor dy;
  if (!one.stage.place().is_last()) {
    Task<Tensor> rows = rows_for(work, one);
    dy = co_await rows;
  }
  Stage::BucketDone done;
  if (work_->reduce_gradients) {
    done = [this, stage = one.chunk.stage](int bucket) { bucket_done(stage, bucket); };
  }
  Task<Tensor> pass = one.stage.backward(one.context, one.saved, dy, weights, std::move(done));
  const Tensor dx = co_await pass;
  if (dx.defined()) {
    Request computed = worker_.kernels().launched();
    co_await computed;
  }
  hand_on(work, dx);
}

// As many backward passes add to a bucket as micro-batches pass through the stage here.
void Executor::bucket_done(int stage, int bucket) {
  const auto [left, first] = backwards_left_.try_emplace({stage, bucket}, 0);
  if (first) {
    for (int i = 0; i < program_.num_micro_batches; ++i) left->second += program_.rank_of({stage, i}) == rank_ ? 1 : 0;
  }
  if (--left->second == 0) worker_.start_gradient_reduction(stage, bucket);
}

Executor::Live& Executor::begin(Chunk chunk) {
  const auto free = std::find(live_.begin(), live_.end(), nullptr);
  CADRE_ASSERT(free != live_.end());
  worker_.job().tracer().switch_to({.step = work_->step, .micro_batch = chunk.micro_batch, .phase = "data"});
  *free = std::make_unique<Live>(worker_, *work_, deferred_, static_cast<int>(free - live_.begin()), chunk);
  return **free;
}

Executor::Live& Executor::live(Chunk chunk) {
  const auto found = std::ranges::find_if(live_, [&](const auto& one) { return one && one->chunk == chunk; });
  CADRE_ASSERT(found != live_.end());
  return **found;
}

void Executor::end(Chunk chunk) { live_[static_cast<size_t>(live(chunk).lane)].reset(); }

void Executor::forward_over() {
  if (--forwards_left_ == 0 && work_->forwards_done) work_->forwards_done();
}

size_t Executor::bytes_of(int micro_batch) const {
  return static_cast<size_t>(work_->num_tokens(micro_batch) * worker_.model().config().hidden_size) * sizeof(float);
}

// Forward and backward passes of the same two stages travel in opposite directions: between two ranks one of the two
// stages of the receiver and a micro-batch tell which message it is.
int Executor::tag_of(Work work) const {
  return phase_of(program_, work.chunk) * program_.num_micro_batches + work.chunk.micro_batch;
}

void Executor::post_receive(const Op& op) {
  Rows& rows = rows_[index_of(program_, op.feeds)];
  rows.memory = Buffer(bytes_of(op.feeds.chunk.micro_batch));
  if (rows.memory.empty()) return;
  const bool forward = op.feeds.pass == Pass::forward;
  worker_.job().tracer().switch_to({.step = work_->step,
                                    .micro_batch = op.feeds.chunk.micro_batch,
                                    .phase = forward ? "receive activations" : "receive gradients"});
  rows.arrived = worker_.pipeline_group().receive(rows.memory.span(), rows.memory.share(), op.peer, tag_of(op.feeds));
}

void Executor::post_send(const Op& op) {
  auto rows = rows_.extract(index_of(program_, op.feeds));
  CADRE_ASSERT(!rows.empty());
  Buffer& memory = rows.mapped().memory;
  if (memory.empty()) return;
  const bool forward = op.feeds.pass == Pass::forward;
  worker_.job().tracer().switch_to({.step = work_->step,
                                    .micro_batch = op.feeds.chunk.micro_batch,
                                    .phase = forward ? "send activations" : "send gradients"});
  Request sent = worker_.pipeline_group().send(memory.span(), memory.share(), op.peer, tag_of(op.feeds));
  std::erase_if(sends_, [](Request& request) { return request.test(); });
  if (!sent.test()) sends_.push_back(std::move(sent));
}

void Executor::hand_on(Work done, const Tensor& rows) {
  const auto next = work_after(program_, done);
  if (!next || !rows.defined()) return;
  Buffer copy(rows.bytes());
  if (!copy.empty()) std::memcpy(copy.data(), rows.raw(), rows.bytes());
  rows_[index_of(program_, *next)].memory = std::move(copy);
}

Task<Tensor> Executor::rows_for(Work work, Live& one) {
  const bool forward = work.pass == Pass::forward;
  worker_.lane(one.lane).enter(forward ? "receive activations" : "receive gradients", -1);
  auto found = rows_.extract(index_of(program_, work));
  CADRE_ASSERT(!found.empty());
  co_await found.mapped().arrived;
  Buffer& kept = forward ? one.input : one.output_gradient;
  kept = std::move(found.mapped().memory);
  const int64_t hidden = worker_.model().config().hidden_size;
  co_return Tensor(kept.data(), DType::f32, {one.batch.num_tokens(), hidden});
}

}  // namespace cadre
