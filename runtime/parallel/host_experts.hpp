// SPDX-License-Identifier: Apache-2.0
// The weights of experts in memory that the ranks of a host share, so that each rank computes rows of any expert of its host
// (exchange.balance = host).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/topology.hpp"
#include "layers/moe/moe_layer.hpp"

namespace cadre {

// The part of one rank in such memory, for one Buffer; outlives it.
class HostWindow : public Memory {
 public:
  // Collective over `host`: each rank gets the bytes that the rank with most asks for. Throws as Transport::share.
  HostWindow(const Communicator& host, size_t bytes);

  std::byte* allocate(size_t bytes) override;
  void release(std::byte* /*data*/) noexcept override {}

  std::byte* of(int local_rank) const { return memory_->of(local_rank).data(); }
  int64_t offset_of(const std::byte* data) const { return data - of(local_rank_); }

 private:
  int local_rank_;
  std::unique_ptr<SharedMemory> memory_;
};

class HostExperts {
 public:
  // Collective over `world`; `expert_group` is that of this rank. For values of `bytes`.
  HostExperts(const Communicator& world, const Communicator& expert_group, size_t bytes);

  Memory& memory() { return *window_; }
  // Tells the other ranks of the host where the weights of the experts of these layers lie, and the layers where theirs do.
  // Collective over the expert-parallel group; again after MoeLayer::relocate.
  void publish(const std::vector<MoeLayer*>& layers, bool with_grad);

 private:
  const Communicator& expert_group_;
  Topology topology_;
  Communicator host_;
  std::unique_ptr<HostWindow> window_;
};

// Bytes of the values of experts in a ParameterStore.
size_t expert_value_bytes(const std::vector<Parameter*>& parameters);

}  // namespace cadre
