// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/pipeline_rows.hpp"

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

size_t PipelineRows::bytes_of(int micro_batch) const {
  return static_cast<size_t>(work_.num_tokens(micro_batch) * worker_.model().config().hidden_size) * sizeof(float);
}

void PipelineRows::post_receive(const Op& op) {
  Rows& rows = rows_[index_of(program_, op.feeds)];
  rows.memory = Buffer(bytes_of(op.feeds.chunk.micro_batch));
  if (rows.memory.empty()) return;
  const bool forward = op.feeds.pass == Pass::forward;
  worker_.job().tracer().switch_to({.step = work_.step,
                                    .micro_batch = op.feeds.chunk.micro_batch,
                                    .phase = forward ? "receive activations" : "receive gradients"});
  rows.arrived =
      worker_.pipeline_group().receive(rows.memory.span(), rows.memory.share(), op.peer, tag_of(program_, op.feeds));
}

void PipelineRows::post_send(const Op& op) {
  auto rows = rows_.extract(index_of(program_, op.feeds));
  CADRE_ASSERT(!rows.empty());
  Buffer& memory = rows.mapped().memory;
  if (memory.empty()) return;
  const bool forward = op.feeds.pass == Pass::forward;
  worker_.job().tracer().switch_to({.step = work_.step,
                                    .micro_batch = op.feeds.chunk.micro_batch,
                                    .phase = forward ? "send activations" : "send gradients"});
  Request sent = worker_.pipeline_group().send(memory.span(), memory.share(), op.peer, tag_of(program_, op.feeds));
  std::erase_if(sends_, [](Request& request) { return request.test(); });
  if (!sent.test()) sends_.push_back(std::move(sent));
}

void PipelineRows::hand_on(Work done, const Tensor& rows) {
  const auto next = work_after(program_, done);
  if (!next || !rows.defined()) return;
  Buffer copy(rows.bytes());
  worker_.kernels().memory().read(copy.data(), rows.raw(), rows.bytes());
  rows_[index_of(program_, *next)].memory = std::move(copy);
}

Task<Tensor> PipelineRows::take(Work work, Lane& lane, int64_t num_tokens, Buffer& kept) {
  lane.enter(work.pass == Pass::forward ? "receive activations" : "receive gradients", -1);
  auto found = rows_.extract(index_of(program_, work));
  CADRE_ASSERT(!found.empty());
  co_await found.mapped().arrived;
  kept = std::move(found.mapped().memory);
  co_return Tensor(kept.data(), DType::f32, {num_tokens, worker_.model().config().hidden_size});
}

void PipelineRows::finish() {
  worker_.lane().position = {.step = work_.step, .phase = "send"};
  for (Request& sent : sends_) worker_.await(sent);
  CADRE_ASSERT(rows_.empty());
}

}  // namespace cadre
