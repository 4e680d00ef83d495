// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/executor.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "comm/base/buffer.hpp"
#include "runtime/parallel/pipeline_rows.hpp"
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

// A micro-batch at a stage, between its forward and the end of its backward.
struct LiveChunk {
  LiveChunk(Worker& worker, const StepWork& work, DeferredQueue& deferred, int lane_index, Chunk at)
      : lane(lane_index),
        chunk(at),
        stage(worker.model().stage(at.stage)),
        batch(work.read(at.micro_batch)),
        scope(worker.arena(lane_index)),
        context(worker.lanes().training_context(work.token_scale, deferred, lane_index)) {
    context.tokens = batch.facts(work.seed);
    context.values_of = [&gradients = worker.gradients(), at](int bucket) -> Request& {
      return gradients.values_of(at.stage, bucket);
    };
    context.sums_experts = worker.gradients().sums_experts(at.stage);
    context.loss_scale = work.loss_scale;
    if (work.adapter_dropout) context.dropout = dropout_rows(context.arena, context.tokens, batch.num_tokens());
    worker.lane(lane_index).position = {.step = work.step, .micro_batch = at.micro_batch};
  }

  int lane;
  Chunk chunk;
  Stage& stage;
  MicroBatch batch;
  ArenaScope scope;
  LaneContext context;
  std::optional<Lanes::WorkLoan> loan;  // during the forward pass, and from the backward pass on
  std::optional<WorkScope> work_scope;  // of the backward pass
  Stage::Saved saved;
  LocalStep local;              // what its forward pass was like
  Buffer input;                 // of the forward pass
  Buffer output_gradient;       // what the backward pass begins with
  uint64_t deferred_until = 0;  // weight gradients of this chunk are among the first so many of the queue
};

// One run of the program: it lives on the frame of Executor::run().
class ProgramRun {
 public:
  ProgramRun(Worker& worker, const Program& program, const StepWork& work, LocalStep& local, Overlap overlap);

  void run();

 private:
  // Ops that run side by side: one, or several forwards or backwards.
  void run(std::span<const Op> ops);
  void run(const Op& op);
  void run_forwards(std::span<const Op> ops);
  void run_backwards(std::span<const Op> ops);
  void run_passes(std::vector<Engine::Run> runs);
  Task<void> forward_pass(LiveChunk& one);
  Task<void> backward_pass(LiveChunk& one, Stage::Weights weights);
  LiveChunk& begin_backward(Chunk chunk);
  void bucket_done(int stage, int bucket);

  void postpone_weight_grads(LiveChunk& one);
  void finish_postponed(size_t most_left = 0);

  LiveChunk& begin(Chunk chunk);
  LiveChunk& live(Chunk chunk);
  void end(Chunk chunk);
  void forward_over(LiveChunk& one);

  Task<Tensor> rows_for(Work work, LiveChunk& one);

  Worker& worker_;
  const Program& program_;
  const StepWork& work_;
  LocalStep& local_;
  Overlap overlap_;
  Tracer& tracer_;
  int rank_;
  int forwards_left_;
  std::vector<std::unique_ptr<LiveChunk>> live_;  // by lane
  DeferredQueue deferred_;
  std::deque<LiveChunk*>
      postponed_;  // of overlapped ops, whose weight gradients may still be in the queue; oldest first
  PipelineRows rows_;
  std::map<std::pair<int, int>, int> backwards_left_;  // by stage and bucket
};

ProgramRun::ProgramRun(Worker& worker, const Program& program, const StepWork& work, LocalStep& local, Overlap overlap)
    : worker_(worker),
      program_(program),
      work_(work),
      local_(local),
      overlap_(overlap),
      tracer_(worker.job().tracer()),
      rank_(worker.row()),
      forwards_left_(static_cast<int>(std::ranges::count_if(
          program.ops[static_cast<size_t>(rank_)],
          [](const Op& op) { return op.kind == OpKind::forward || op.kind == OpKind::overlapped; }))),
      live_(static_cast<size_t>(worker.lanes().size())),
      rows_(worker, program, work) {}

void ProgramRun::run() {
  const PollScope polling(worker_.poller());
  try {
    std::span<const Op> left = program_.ops[static_cast<size_t>(rank_)];
    while (!left.empty()) {
      const size_t together = count_together(left);
      run(left.first(together));
      left = left.subspan(together);
    }
    finish_postponed();
  } catch (const OutOfMemory& error) {
    const Position at = tracer_.whereabouts().at;
    if (at.micro_batch < 0) throw;
    throw error.at(at, work_.num_tokens(at.micro_batch));
  }
  rows_.finish();
}

void ProgramRun::run(std::span<const Op> ops) {
  const Op& first = ops.front();
  const TraceSpan span(tracer_, TraceKind::op,
                       {.step = work_.step, .micro_batch = first.chunk.micro_batch, .phase = span_of(first.kind)});
  if (ops.size() == 1) return run(first);
  first.kind == OpKind::forward ? run_forwards(ops) : run_backwards(ops);
}

void ProgramRun::run_forwards(std::span<const Op> ops) {
  std::vector<LiveChunk*> chunks;
  std::vector<Task<void>> passes;
  passes.reserve(ops.size());
  std::vector<Engine::Run> runs;
  for (const Op& op : ops) {
    chunks.push_back(&begin(op.chunk));
    passes.push_back(forward_pass(*chunks.back()));
    runs.push_back({&worker_.lane(chunks.back()->lane), &passes.back()});
  }
  run_passes(std::move(runs));
  for (LiveChunk* one : chunks) forward_over(*one);
}

void ProgramRun::run_backwards(std::span<const Op> ops) {
  DeferredMerge merge(deferred_, ops.size());
  std::vector<Task<void>> passes;
  passes.reserve(ops.size());
  std::vector<Engine::Run> runs;
  for (size_t i = 0; i < ops.size(); ++i) {
    LiveChunk& one = begin_backward(ops[i].chunk);
    one.context.deferred = &merge.queue(i);
    passes.push_back(backward_pass(one, Stage::Weights::later));
    runs.push_back({&worker_.lane(one.lane), &passes.back()});
  }
  run_passes(std::move(runs));
  deferred_.run_first(deferred_.num_pushed(), tracer_);
  finish_postponed();
  for (const Op& op : ops) end(op.chunk);
}

void ProgramRun::run(const Op& op) {
  switch (op.kind) {
    case OpKind::receive: return rows_.post_receive(op);
    case OpKind::send: return rows_.post_send(op);
    case OpKind::forward: return run_forwards({&op, 1});
    case OpKind::backward: {
      if (!postponed_.empty()) return run_backwards({&op, 1});
      LiveChunk& one = begin_backward(op.chunk);
      Task<void> pass = backward_pass(one, Stage::Weights::at_once);
      run_passes({{&worker_.lane(one.lane), &pass}});
      return end(op.chunk);
    }
    case OpKind::overlapped: {
      LiveChunk& behind = begin_backward(op.back_chunk);
      LiveChunk& ahead = begin(op.chunk);
      Task<void> backward = backward_pass(behind, Stage::Weights::later);
      Task<void> forward = forward_pass(ahead);
      // The backward pass begins with an exchange and so starts first, in the shadow of attention. From then on the forward
      // pass comes first: it waits once more in each layer, and weight gradients fill the end of the backward pass.
      run_passes({{&worker_.lane(ahead.lane), &forward}, {&worker_.lane(behind.lane), &backward}});
      postpone_weight_grads(behind);
      return forward_over(ahead);
    }
    case OpKind::backward_input: {
      LiveChunk& one = begin_backward(op.chunk);
      Task<void> pass = backward_pass(one, Stage::Weights::later);
      run_passes({{&worker_.lane(one.lane), &pass}});
      one.deferred_until = deferred_.num_pushed();
      return;
    }
    case OpKind::backward_weight: deferred_.run_first(live(op.chunk).deferred_until, tracer_); return end(op.chunk);
  }
}

void ProgramRun::run_passes(std::vector<Engine::Run> runs) {
  if (overlap_ == Overlap::on) return worker_.lanes().run(std::move(runs), &deferred_);
  for (const Engine::Run& run : runs) worker_.lanes().run({run});
}

// They run as filler in later ops. When that happens depends on time; a lane is freed at the same op on all ranks, which must
// agree on the lane of a micro-batch.
void ProgramRun::postpone_weight_grads(LiveChunk& one) {
  one.deferred_until = deferred_.num_pushed();
  postponed_.push_back(&one);
  finish_postponed(static_cast<size_t>(program_.num_postponed));
}

void ProgramRun::finish_postponed(size_t most_left) {
  while (postponed_.size() > most_left) {
    const LiveChunk& oldest = *postponed_.front();
    deferred_.run_first(oldest.deferred_until, tracer_);
    end(oldest.chunk);
    postponed_.pop_front();
  }
}

Task<void> ProgramRun::forward_pass(LiveChunk& one) {
  const Work work = {Pass::forward, one.chunk};
  Tensor x;
  if (work_before(program_, work)) {
    Task<Tensor> rows = rows_for(work, one);
    x = co_await rows;
  }
  Tensor y;
  one.local = empty_local_step(one.stage.config());
  Task<void> pass = cadre::forward(one.stage, one.context, one.batch, x, one.saved, y, one.local);
  co_await pass;
  if (work_.forward_done || y.defined()) {  // the host reads them
    Request computed = worker_.kernels().launched();
    co_await computed;
  }
  if (work_.forward_done) work_.forward_done(one.chunk.micro_batch, one.stage, one.saved, y);
  rows_.hand_on(work, y);
}

Task<void> ProgramRun::backward_pass(LiveChunk& one, Stage::Weights weights) {
  const Work work = {Pass::backward, one.chunk};
  Tensor dy;
  if (!one.stage.place().is_last()) {
    Task<Tensor> rows = rows_for(work, one);
    dy = co_await rows;
  }
  if (one.context.deferred == &deferred_) deferred_.begin_pass();
  Stage::BucketCalls calls;
  const bool drops = worker_.gradients().sums_each_pass();
  if (drops) calls.begin = [this, stage = one.chunk.stage](int bucket) { worker_.gradients().begin(stage, bucket); };
  if (drops || work_.reduce_gradients) {
    calls.done = [this, stage = one.chunk.stage](int bucket) { bucket_done(stage, bucket); };
  }
  Task<Tensor> pass = one.stage.backward(one.context, one.saved, dy, weights, std::move(calls));
  const Tensor dx = co_await pass;
  if (dx.defined()) {
    Request computed = worker_.kernels().launched();
    co_await computed;
  }
  rows_.hand_on(work, dx);
}

// As many backward passes add to a bucket as micro-batches pass through the stage here.
void ProgramRun::bucket_done(int stage, int bucket) {
  const auto [left, first] = backwards_left_.try_emplace({stage, bucket}, 0);
  if (first) {
    for (int i = 0; i < program_.num_micro_batches; ++i) left->second += program_.rank_of({stage, i}) == rank_ ? 1 : 0;
  }
  const bool is_last = --left->second == 0;
  GradientReduction& gradients = worker_.gradients();
  if (!work_.reduce_gradients) {
    if (work_.gradients_done) work_.gradients_done(worker_.model().stage(stage), bucket);
    gradients.drop(stage, bucket);
  } else if (is_last) {
    gradients.start(stage, bucket);
  } else if (gradients.sums_each_pass()) {
    gradients.start(stage, bucket, GradientReduction::Pass::one_of_more);
  }
}

LiveChunk& ProgramRun::begin(Chunk chunk) {
  const auto free = std::find(live_.begin(), live_.end(), nullptr);
  CADRE_ASSERT(free != live_.end());
  tracer_.switch_to({.step = work_.step, .micro_batch = chunk.micro_batch, .phase = "data"});
  const auto lane = static_cast<int>(free - live_.begin());
  *free = std::make_unique<LiveChunk>(worker_, work_, deferred_, lane, chunk);
  if ((*free)->context.recompute.every_layer > 0) (*free)->loan.emplace(worker_.lanes(), lane);
  return **free;
}

// What the backward pass takes stays until the chunk ends, because deferred weight gradients read it.
LiveChunk& ProgramRun::begin_backward(Chunk chunk) {
  LiveChunk& one = live(chunk);
  one.loan.emplace(worker_.lanes(), one.lane);
  one.work_scope.emplace(worker_.arena(one.lane));
  return one;
}

LiveChunk& ProgramRun::live(Chunk chunk) {
  const auto found = std::ranges::find_if(live_, [&](const auto& one) { return one && one->chunk == chunk; });
  CADRE_ASSERT(found != live_.end());
  return **found;
}

void ProgramRun::end(Chunk chunk) { live_[static_cast<size_t>(live(chunk).lane)].reset(); }

// In the order of the program, so that sums have the same bits whichever pass ended first.
void ProgramRun::forward_over(LiveChunk& one) {
  one.loan.reset();
  local_ += one.local;
  if (--forwards_left_ > 0) return;
  if (program_.ends_by_layer) deferred_.run_early_parts_first();
  if (work_.forwards_done) work_.forwards_done();
}

Task<Tensor> ProgramRun::rows_for(Work work, LiveChunk& one) {
  Buffer& kept = work.pass == Pass::forward ? one.input : one.output_gradient;
  return rows_.take(work, worker_.lane(one.lane), one.batch.num_tokens(), kept);
}

}  // namespace

Executor::Executor(Worker& worker, const Program& program) : worker_(worker), program_(program) {
  CADRE_ASSERT(program.num_ranks == worker.grid().pipeline);
  CADRE_CHECK(2 * program.num_micro_batches <= kMaxTag,
              fmt::format("train.micro_batches = {}, allowed: at most {}", program.num_micro_batches, kMaxTag / 2),
              "every message of the pipeline has a tag of its own");
  CADRE_ASSERT(most_lanes(concurrency_of(program, /*recomputes=*/false)) <= worker.lanes().size());
}

void Executor::run(const StepWork& work, LocalStep& local, Overlap overlap) {
  ProgramRun(worker_, program_, work, local, overlap).run();
}

}  // namespace cadre
