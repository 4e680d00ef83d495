// SPDX-License-Identifier: Apache-2.0
// A transport that leaves to another one all that it does not do itself.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "comm/transport/transport.hpp"

namespace cadre {

class ForwardingTransport : public Transport {
 public:
  explicit ForwardingTransport(std::unique_ptr<Transport> base) : Transport(base->job()), base_(std::move(base)) {}

  std::string library() const override { return base_->library(); }
  int rank() const override { return base_->rank(); }
  int size() const override { return base_->size(); }
  int world_rank(int peer) const override { return base_->world_rank(peer); }

  Request send(std::span<const std::byte> bytes, int peer, int tag) override { return base_->send(bytes, peer, tag); }
  Request receive(std::span<std::byte> bytes, int peer, int tag) override { return base_->receive(bytes, peer, tag); }
  Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) override {
    return base_->all_to_all(send, receive);
  }
  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    return base_->all_gather(mine, all);
  }
  Request broadcast(std::span<std::byte> bytes, int root) override { return base_->broadcast(bytes, root); }
  Request barrier() override { return base_->barrier(); }

  void progress() override { base_->progress(); }
  bool progresses_anywhere() const override { return base_->progresses_anywhere(); }
  int host_leader() override { return base_->host_leader(); }
  std::unique_ptr<SharedMemory> share(size_t bytes) override { return base_->share(bytes); }

 protected:
  Transport& base() const { return *base_; }

 private:
  std::unique_ptr<Transport> base_;
};

}  // namespace cadre
