// SPDX-License-Identifier: Apache-2.0
// How the ranks of a job are laid out: a pure value. World = pipeline x data; the data dimension is cut in expert-parallel
// groups of `expert` neighbours, each of which holds every expert of its stage once. Example, 8 ranks, pipeline 2,
// expert 2 (so data is 4):
//
//   rank                          0  1  2  3    4  5  6  7
//   pipeline stage                0  0  0  0    1  1  1  1      ranks r and r + 4 pass micro-batches on
//   expert-parallel groups       [0  1][2  3]  [4  5][6  7]     tokens are dispatched inside
//   expert-data-parallel groups  [0     2]     [4     6]        gradients of the same experts are summed over these
//                                   [1     3]     [5     7]
#pragma once

#include <string>

namespace cadre {

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
