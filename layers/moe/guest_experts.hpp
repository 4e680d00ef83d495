// SPDX-License-Identifier: Apache-2.0
// Experts of other ranks of the host of which this rank computes rows (exchange.balance = host). Their weights are read where
// the owner has them; their gradients are made here and added to those of the owner at the end of the step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/owner_sum.hpp"
#include "layers/moe/expert.hpp"

namespace cadre {

// Where this rank finds the weights of the experts of its host.
struct HostWeights {
  std::vector<int> host_of_rank;  // of the ranks of the expert-parallel group
  // [rank of the group][expert of that rank, in the order of its map][parameter]: the values; empty for other hosts.
  std::vector<std::vector<std::vector<std::byte*>>> values;
  bool with_grad = false;
};

class GuestExperts {
 public:
  // Expert `<prefix>.<id>`, as its owner has it.
  GuestExperts(std::string prefix, const ExpertOptions& options, HostWeights weights)
      : prefix_(std::move(prefix)), options_(options), weights_(std::move(weights)) {}

  const std::vector<int>& host_of_rank() const { return weights_.host_of_rank; }

  // Expert `id`, which is expert `index` of rank `owner`. `version` changes whenever the weights may have. The expert lives as
  // long as no step passes without a call for it.
  Expert& expert(int id, int owner, int index, uint64_t version);
  // Weight gradients that are made of that expert from now on are added up, until take_grads().
  void begin_grads(const Expert& expert);
  // A step begins: forgets all gradients, and experts that the last step did not need, with the copies that kernels keep of
  // their weights. No pass is under way.
  void forget_grads();
  // What was added up, in the order of ids, and forgets it. Its memory is used again after the next forget_grads().
  std::vector<OwnedValues> take_grads(int rank);

 private:
  struct Guest {
    std::unique_ptr<Expert> expert = nullptr;
    int owner = 0;
    bool is_needed = true;  // in this step
    Buffer grads = {};      // none: no gradient in this step
  };

  void place_grads(Expert& expert, std::byte* memory) const;

  std::string prefix_;
  ExpertOptions options_;
  HostWeights weights_;
  std::map<int, Guest> guests_;
  // Kernels choose products by whether a weight has a gradient. Never written.
  Buffer unwritten_grads_;
  std::vector<Buffer> taken_;  // by sums that may be under way
  BufferPool pool_;
};

}  // namespace cadre
