// SPDX-License-Identifier: Apache-2.0
// A transport that follows the queue of a late twin (gpu_twin_machine.hpp), as NCCL follows the stream that computes: what
// rows and sums are made of is looked at, and what comes is written, when the queue is past what it had been told before.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "comm/transport/forwarding.hpp"
#include "tests/support/gpu_twin_machine.hpp"

namespace cadre::test {

// Operations of one group, in order: each begins when the queue is past its mark and those before it have begun.
class FollowedOperations {
 public:
  struct Operation {
    TwinQueue* queue;
    TwinQueue::Mark mark;
    std::function<Request()> begin;
    Request request = {};
    bool has_begun = false;
  };

  std::shared_ptr<Operation> add(TwinQueue* queue, std::function<Request()> begin) {
    waiting_.push_back(std::make_shared<Operation>(Operation{queue, queue->mark(), std::move(begin)}));
    return waiting_.back();
  }
  // Begins what can begin. The device goes on meanwhile.
  void progress() {
    for (; !waiting_.empty(); waiting_.pop_front()) {
      Operation& next = *waiting_.front();
      if (!next.queue->is_past(next.mark)) next.queue->run_some();
      if (!next.queue->is_past(next.mark)) return;
      next.request = next.begin();
      next.has_begun = true;
    }
  }

 private:
  std::deque<std::shared_ptr<Operation>> waiting_;
};

class FollowingTransport final : public ForwardingTransport {
 public:
  // `base` does at once what does not follow; `ordered` are the same ranks, for what does.
  FollowingTransport(std::unique_ptr<Transport> base, std::unique_ptr<Transport> ordered,
                     std::shared_ptr<TwinQueue*> queue)
      : ForwardingTransport(std::move(base)), ordered_(std::move(ordered)), queue_(std::move(queue)) {}

  std::string_view name() const override { return "following"; }

  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    return followed([=, this] { return ordered_->all_to_all_rows(send, receive, row_bytes); });
  }
  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    if (dtype != DType::f32) return base().all_reduce(data, count, dtype, op);
    return followed([=, this] { return ordered_->all_reduce(data, count, dtype, op); });
  }

  bool follow(void* queue) override {
    *queue_ = static_cast<TwinQueue*>(queue);
    return queue != nullptr;
  }

  bool progresses_anywhere() const override { return false; }
  std::unique_ptr<Transport> split(int color, int key) override {
    auto part = base().split(color, key);
    return std::make_unique<FollowingTransport>(std::move(part), ordered_->split(color, key), queue_);
  }

 private:
  class Followed final : public PendingOperation {
   public:
    Followed(std::shared_ptr<FollowedOperations> all, std::shared_ptr<FollowedOperations::Operation> one)
        : all_(std::move(all)), one_(std::move(one)) {}
    bool test() override {
      all_->progress();
      return one_->has_begun && one_->request.test();
    }
    std::string missing() const override { return one_->has_begun ? one_->request.missing() : "the twin itself"; }

   private:
    std::shared_ptr<FollowedOperations> all_;
    std::shared_ptr<FollowedOperations::Operation> one_;
  };

  Request followed(std::function<Request()> begin) {
    if (*queue_ == nullptr) return begin();
    auto one = operations_->add(*queue_, std::move(begin));
    Request request("what follows the twin", std::make_unique<Followed>(operations_, std::move(one)));
    request.hide();  // the operation beneath shows
    return request;
  }

  std::unique_ptr<Transport> ordered_;
  std::shared_ptr<TwinQueue*> queue_;  // of all groups of this rank
  std::shared_ptr<FollowedOperations> operations_ = std::make_shared<FollowedOperations>();
};

// The ranks of `world`. Collective.
inline std::unique_ptr<Transport> make_following_transport(Transport& world) {
  auto base = make_twin_transport(world);
  return std::make_unique<FollowingTransport>(std::move(base), make_twin_transport(world),
                                              std::make_shared<TwinQueue*>(nullptr));
}

}  // namespace cadre::test
