// SPDX-License-Identifier: Apache-2.0
// Which ranks of a group share a host, that is memory: a plain value, found over a communicator or given by hand for planning.
#pragma once

#include <string>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

struct Topology {
  std::vector<int> host_of_rank;  // index into host_names
  std::vector<int> local_rank;    // among the ranks of the same host, in rank order
  std::vector<std::string> host_names;

  int num_ranks() const { return static_cast<int>(host_of_rank.size()); }
  int num_hosts() const { return static_cast<int>(host_names.size()); }
  int ranks_on_host(int host) const;

  // Ranks 0 .. hosts*ranks_per_host - 1, filled host by host.
  static Topology uniform(int num_hosts, int ranks_per_host);
  // Ranks with the same leader share a host.
  static Topology from_leaders(const std::vector<int>& leader_of_rank, const std::vector<std::string>& name_of_rank);

  bool operator==(const Topology&) const = default;
};

// Collective over `group`.
Topology discover_topology(const Communicator& group);

// How the ranks of a job are laid out: a pure value. World = pipeline x data; the data dimension is cut in expert-parallel
// groups of `expert` neighbours, each of which holds every expert of its stage once. Example, 8 ranks, pipeline 2,
// expert 2 (so data is 4):
//
//   rank                          0  1  2  3    4  5  6  7
//   pipeline stage                0  0  0  0    1  1  1  1      ranks r and r + 4 pass micro-batches on
//   expert-parallel groups       [0  1][2  3]  [4  5][6  7]     tokens are dispatched inside
//   expert-data-parallel groups  [0     2]     [4     6]        gradients of the same experts are summed over these
//                                   [1     3]     [5     7]

struct Grid {
  int pipeline = 1;  // stages
  int data = 1;      // data-parallel size: ranks of one stage
  int expert = 1;    // expert-parallel size, divides data

  // `expert` 0 means all ranks of a stage. Throws when the grid does not fit `num_ranks`.
  static Grid make(int num_ranks, int pipeline, int expert);

  int num_ranks() const { return pipeline * data; }

  // Where a rank is.
  int stage(int rank) const { return rank / data; }
  int data_rank(int rank) const { return rank % data; }
  int expert_rank(int rank) const { return data_rank(rank) % expert; }

  // The group of each kind that a rank is in, numbered over the world: the colour of a split.
  int expert_group(int rank) const { return rank / expert; }
  int data_group(int rank) const { return stage(rank); }
  int pipeline_group(int rank) const { return data_rank(rank); }

  std::string describe() const;

  bool operator==(const Grid&) const = default;
};

}  // namespace cadre
