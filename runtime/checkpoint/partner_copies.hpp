// SPDX-License-Identifier: Apache-2.0
// The state of a run in the memory of its ranks, to go on from when some of them die: each keeps its own parameters and
// moments as they were after a step, and what the rank before it alone has: its experts, and moments that are sharded. Two such states are
// kept, so that there is a whole one while the next is made.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/optim/optimizer.hpp"

namespace cadre {

// The rank whose experts `rank` keeps: the one before it, on the host before it where there are several.
int partner_before(const Topology& topology, int rank);

class PartnerCopies {
 public:
  // Collective over `world`. Keeps the state at this progress. The partner is the next rank, on the next host where there are
  // several. It gets experts and the moments of the parameters that this rank `keeps_alone`.
  void take(const Communicator& world, double deadline_seconds, const TrainProgress& progress,
            const ParameterStore& store, const Optimizer& optimizer, const ParameterChoice& keeps_alone);

  // Collective over `world`, which may have lost ranks. Puts the newest state that all of them have whole into `store` and
  // `optimizer`, wherever these are now, and returns its progress. Where there is none, or a tensor died with all ranks that
  // had it, returns nothing and changes nothing.
  std::optional<TrainProgress> restore(const Communicator& world, double deadline_seconds, const ParameterStore& store,
                                       Optimizer& optimizer) const;

  size_t bytes() const;  // that both states take

 private:
  // Tensors in a row, by the hash of their name.
  struct Entry {
    uint64_t key;
    int64_t offset;
    int64_t bytes;
  };
  struct Copy {
    std::vector<Entry> entries;
    Buffer bytes;
  };
  struct State {
    int64_t step = -1;  // -1: not whole
    TrainProgress progress;
    std::vector<int64_t> skipped_steps;
    UpdateCounts updates = {};
    Copy own;
    Copy of_partner;
  };

  static void copy(const std::vector<NamedTensor>& tensors, Memory& memory, Copy& to);
  static void swap_with_partners(const Communicator& world, double deadline_seconds, const Copy& mine, Copy& theirs);
  const State* newest_of_all(const Communicator& world, double deadline_seconds) const;

  std::array<State, 2> states_;
};

}  // namespace cadre
