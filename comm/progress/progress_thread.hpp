// SPDX-License-Identifier: Apache-2.0
// A thread that drives a transport while its rank computes, for MPI libraries that move data only inside calls. It spins,
// so it needs a cpu without a computing thread. What an exchange itself does between two messages (hierarchical) is still
// left to the polls of the rank.
#pragma once

#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

class ProgressThread {
 public:
  // Calls transport.progress() from `cpu` until it is destroyed. The transport outlives it.
  ProgressThread(Transport& transport, int cpu);

 private:
  std::jthread thread_;
};

// The cpus that a process may use, ascending.
std::vector<int> cpus_of_process();

// Where processes `index` of `count` that share `cpus`, each computing with `threads`, may each have one cpu more: the
// last ones, the first process the last of all. None unless all of them may.
std::optional<int> spare_cpu(std::span<const int> cpus, int index, int count, int threads);

// The cpu that this rank may spin on, or why not all ranks have one: all have, or none.
struct SpareCpu {
  std::optional<int> cpu;
  std::string why_not;
};
// Collective over `world`; every rank computes with `threads`.
SpareCpu find_spare_cpu(const Communicator& world, int threads);

}  // namespace cadre
