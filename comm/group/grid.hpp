// SPDX-License-Identifier: Apache-2.0
// How the ranks of a job are laid out: a pure value. The data-parallel dimension is cut in expert-parallel groups of
// `expert` neighbours; each group holds every expert once. Example, 4 ranks, expert = 2:
//
//   rank                          0  1  2  3
//   expert-parallel groups       [0  1][2  3]      tokens are dispatched inside
//   expert-data-parallel groups  [0     2]         gradients of the same experts are summed over these
//                                   [1     3]
#pragma once

#include <string>

namespace cadre {

struct Grid {
  int data = 1;    // data-parallel size
  int expert = 1;  // expert-parallel size, divides data

  // `expert` 0 means all ranks. Throws when the grid does not fit `num_ranks`.
  static Grid make(int num_ranks, int expert);

  int num_ranks() const { return data; }
  int num_expert_groups() const { return data / expert; }
  int expert_group(int rank) const { return rank / expert; }  // which expert-parallel group
  int expert_rank(int rank) const { return rank % expert; }   // the place inside it
  std::string describe() const;

  bool operator==(const Grid&) const = default;
};

}  // namespace cadre
